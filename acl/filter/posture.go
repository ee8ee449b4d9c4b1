package filter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Posture digests which conditions on posture held between this node and a peer, according to the netmap: the same
// verdicts have the same digest as long as the policy's rules keep their places. It reveals nothing of the facts behind
// the verdicts, which this node does not know. The zero Posture means that no condition held.
type Posture [8]byte

func (p Posture) String() string { return hex.EncodeToString(p[:]) }

// postures holds two digests for each row of a Program, one per family; nil if no rule and no set is conditional.
type postures []Posture

func (ps postures) at(row int, is4 bool) *Posture {
	n := 2 * row
	if is4 {
		n++
	}
	return &ps[n]
}

// posture returns the digest for an address on a peer's side.
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

// asked returns the names of the conditional sets among the chosen selectors.
func (s *selectors) asked(chosen []int) (names []string) {
	for _, n := range chosen {
		if s.asks[n] != "" {
			names = append(names, s.asks[n])
		}
	}
	return names
}

// conditional returns the keys of those of the numbered rules that apply because of facts about this node.
func conditional(rules []proto.Rule, numbers []int) (keys []string) {
	for _, n := range numbers {
		if rules[n].Conditional {
			keys = append(keys, rules[n].Key)
		}
	}
	return keys
}

// postureOf digests the conditional sets that a peer is in and the conditional rules that select it.
func postureOf(sets, rules []string) (d Posture) {
	if len(sets)+len(rules) == 0 {
		return Posture{}
	}
	h := sha256.New()
	for _, names := range [][]string{sets, rules} {
		slices.Sort(names)
		_ = binary.Write(h, binary.BigEndian, uint32(len(names))) // writing to a hash never fails
		for _, n := range names {
			_ = binary.Write(h, binary.BigEndian, uint32(len(n)))
			h.Write([]byte(n))
		}
	}
	copy(d[:], h.Sum(nil))
	return d
}
