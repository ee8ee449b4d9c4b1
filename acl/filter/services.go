package filter

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// ruling is the part of a rule that packets, and the people who read records, need.
type ruling struct {
	proto.Origin
	action proto.Action
	until  time.Time // of a Monitor
}

// passes reports whether the rule lets through what it decides about. Only this method decides so: an action that is not
// known here lets nothing pass.
func (r *ruling) passes() bool {
	return r != nil && (r.action == proto.Allow || r.action == proto.Monitor)
}

// services is what one group of peers may reach on one group of local addresses, or the reverse: disjoint, sorted ranges of
// (protocol, port), each with the rule that decides about it. Immutable and shared.
type services struct {
	first, last []uint32 // protocol<<16 | port
	rule        []*ruling
	allow       *ruling // the first rule that allows anything; nil if there is none
	jump        jump
}

// span is one rule's claim to a range of (protocol, port).
type span struct {
	first, last uint32
	rank        rank
	rule        int
}

// rank orders rules by precedence where their claims overlap: deny before allow, and monitor last.
type rank uint8

func rankOf(a proto.Action) rank {
	switch a {
	case proto.Allow:
		return 1
	case proto.Monitor:
		return 2
	}
	return 0
}

func point(protocol uint8, port uint16) uint32 { return uint32(protocol)<<16 | uint32(port) }

// find returns the rule that decides about a protocol and port, nil if there is none.
func (s *services) find(at uint32) *ruling {
	if s == nil || len(s.first) == 0 {
		return nil
	}
	if lo := s.search(at); s.first[lo] <= at && at <= s.last[lo] {
		return s.rule[lo]
	}
	return nil
}

// search returns the index of the last range that begins no later than at, or 0 if there is none. The branchless binary
// search always takes all its steps but never mispredicts.
func (s *services) search(at uint32) int {
	lo, n := s.jump.to(at, len(s.first))
	for n > 1 {
		half := n / 2
		if s.first[lo+half] <= at {
			lo += half
		}
		n -= half
	}
	return lo
}

// jump narrows a search among many ranges so that it takes as long as among few: the ports of TCP, then those of UDP, are cut
// into equal parts, about as many as there are ranges, and each part holds the index of the last range that begins no later
// than the part does.
type jump struct {
	parts [2][]uint32 // one entry more than there are parts; nil if there are few ranges
	shift uint8
}

const fewRanges = 32

func (s *services) makeJump() {
	if len(s.first) <= fewRanges {
		return
	}
	width := min(bits.Len(uint(len(s.first))), 16)
	var j jump
	j.shift = uint8(16 - width)
	for i, protocol := range []uint8{proto.ProtoTCP, proto.ProtoUDP} {
		for part := range uint32(1)<<width + 1 {
			j.parts[i] = append(j.parts[i], uint32(s.search(point(protocol, 0)+part<<j.shift)))
		}
	}
	s.jump = j
}

// to returns the part of all ranges in which the one for at lies: its first index and its length.
func (j *jump) to(at uint32, all int) (lo, n int) {
	i := 0
	switch {
	case j.parts[0] == nil:
		return 0, all
	case at>>16 == proto.ProtoTCP:
	case at>>16 == proto.ProtoUDP:
		i = 1
	default:
		return 0, all
	}
	part := at & 0xffff >> j.shift
	lo = int(j.parts[i][part])
	return lo, int(j.parts[i][part+1]) - lo + 1
}

// maxNear is how many ranges are searched in each direction for the nearest one.
const maxNear = 16

// near returns the rule that comes nearest to allowing a protocol and port that no rule allows, nil if none allows anything.
// A range of the same protocol is nearer than one of another protocol.
func (s *services) near(at uint32) *ruling {
	if s == nil || s.allow == nil {
		return nil
	}
	best, least := s.allow, uint64(1)<<62
	look := func(i int) (done bool) {
		if s.rule[i].action != proto.Allow {
			return false
		}
		away := uint64(at - s.last[i])
		if at < s.first[i] {
			away = uint64(s.first[i] - at)
		}
		if s.first[i]>>16 != at>>16 && s.last[i]>>16 != at>>16 {
			away += 1 << 40
		}
		if away < least {
			best, least = s.rule[i], away
		}
		return true
	}
	lo := s.search(at)
	for i := lo; i >= max(0, lo-maxNear) && !look(i); i-- {
	}
	for i := lo + 1; i < min(len(s.first), lo+maxNear) && !look(i); i++ {
	}
	return best
}

// flatten turns the claims of rules into disjoint ranges. Where claims overlap, the lowest rank wins, then the lowest rule
// number, so that the same policy always names the same rule.
func flatten(claims []span) []span {
	points := make([]uint32, 0, 2*len(claims))
	for _, c := range claims {
		points = append(points, c.first, c.last+1)
	}
	slices.Sort(points)
	points = slices.Compact(points)

	// Cell i is [points[i], points[i+1]). free[i] leads to the first cell at or after i that no rule owns yet.
	owner := make([]int, len(points))
	free := make([]int, len(points)+1)
	for i := range free {
		free[i] = i
	}
	find := func(i int) int {
		for free[i] != i {
			free[i] = free[free[i]]
			i = free[i]
		}
		return i
	}
	for i := range owner {
		owner[i] = -1
	}
	slices.SortFunc(claims, func(a, b span) int { return cmp.Or(cmp.Compare(a.rank, b.rank), a.rule-b.rule) })
	for _, c := range claims {
		start, _ := slices.BinarySearch(points, c.first)
		for i := find(start); points[i] <= c.last; i = find(i) {
			owner[i] = c.rule
			free[i] = i + 1
		}
	}

	var out []span
	for i, rule := range owner {
		if rule < 0 {
			continue
		}
		last := points[i+1] - 1
		if n := len(out); n > 0 && out[n-1].rule == rule && out[n-1].last+1 == points[i] {
			out[n-1].last = last
			continue
		}
		out = append(out, span{first: points[i], last: last, rule: rule})
	}
	return out
}

// shelf keeps one copy of each distinct services value.
type shelf struct {
	rules []ruling
	known map[string]*services
}

// services returns the shared services of the claims, nil if there are none.
func (h *shelf) services(claims []span) *services {
	if len(claims) == 0 {
		return nil
	}
	allow := -1 // even if other rules decide about everything that it claims
	for _, c := range claims {
		if c.rank == rankOf(proto.Allow) && (allow < 0 || c.rule < allow) {
			allow = c.rule
		}
	}
	flat := flatten(claims)
	id := binary.BigEndian.AppendUint32(make([]byte, 0, 4+12*len(flat)), uint32(allow))
	for _, c := range flat {
		id = binary.BigEndian.AppendUint32(id, c.first)
		id = binary.BigEndian.AppendUint32(id, c.last)
		id = binary.BigEndian.AppendUint32(id, uint32(c.rule))
	}
	if s, ok := h.known[string(id)]; ok {
		return s
	}
	s := &services{
		first: make([]uint32, len(flat)),
		last:  make([]uint32, len(flat)),
		rule:  make([]*ruling, len(flat)),
	}
	for i, c := range flat {
		s.first[i], s.last[i], s.rule[i] = c.first, c.last, &h.rules[c.rule]
	}
	if allow >= 0 {
		s.allow = &h.rules[allow]
	}
	s.makeJump()
	h.known[string(id)] = s
	return s
}
