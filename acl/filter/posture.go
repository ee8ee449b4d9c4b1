package filter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Posture digests what held between this node and a peer because of the posture of either, as the netmap told it: the
// same verdicts have the same digest for as long as the policy's rules keep their places. It tells nothing of the facts
// behind the verdicts, which this node does not know. The zero Posture is that nothing held for such a reason.
type Posture [8]byte

func (p Posture) String() string { return hex.EncodeToString(p[:]) }

// postures are the digests for each row of a Program, one for each family; nil where no rule and no set is conditional.
type postures []Posture

func (ps postures) at(row int, is4 bool) *Posture {
	n := 2 * row
	if is4 {
		n++
	}
	return &ps[n]
}

// posture is the digest for an address on a peer's side.
func (p *Program) posture(dir proto.Direction, remote packet.Addr) Posture {
	if p == nil || p.postures[dir] == nil {
		return Posture{}
	}
	_, row, known := p.who(remote)
	if !known {
		return Posture{}
	}
	return *p.postures[dir].at(row, remote.Is4())
}

// asked are the conditional sets among the chosen selectors.
func (s *selectors) asked(chosen []int) (names []string) {
	for _, n := range chosen {
		if s.asks[n] != "" {
			names = append(names, s.asks[n])
		}
	}
	return names
}

// conditional are the keys of the rules among some that are there for facts of this node.
func conditional(rules []proto.Rule, numbers []int) (keys []string) {
	for _, n := range numbers {
		if rules[n].Conditional {
			keys = append(keys, rules[n].Key)
		}
	}
	return keys
}

// postureOf digests those that are conditional among the sets that a peer is in and the rules that pick it.
func postureOf(sets, rules []string) (d Posture) {
	if len(sets)+len(rules) == 0 {
		return Posture{}
	}
	h := sha256.New()
	for _, names := range [][]string{sets, rules} {
		slices.Sort(names)
		_ = binary.Write(h, binary.BigEndian, uint32(len(names))) // no write to a hash fails
		for _, n := range names {
			_ = binary.Write(h, binary.BigEndian, uint32(len(n)))
			h.Write([]byte(n))
		}
	}
	copy(d[:], h.Sum(nil))
	return d
}
