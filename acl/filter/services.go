package filter

import (
	"encoding/binary"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// services is what one group of peers may reach on one group of local addresses, or the reverse: disjoint ranges of
// (protocol, port), sorted, each with the first rule in order that permits it. Immutable and shared.
type services struct {
	first, last []uint32 // protocol<<16 | port
	rule        []*proto.Origin
}

// span is one rule's claim to a range of (protocol, port).
type span struct {
	first, last uint32
	rule        int
}

func point(protocol uint8, port uint16) uint32 { return uint32(protocol)<<16 | uint32(port) }

// permits finds the rule that permits a protocol and port. Where none does, near is the rule whose range is nearest,
// nil where there are no rules at all.
func (s *services) permits(protocol uint8, port uint16) (rule, near *proto.Origin) {
	if s == nil || len(s.first) == 0 {
		return nil, nil
	}
	at := point(protocol, port)
	lo, hi := 0, len(s.first) // s.first[lo] <= at < s.first[hi], where they exist
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		if s.first[mid] <= at {
			lo = mid
		} else {
			hi = mid
		}
	}
	if s.first[lo] <= at && at <= s.last[lo] {
		return s.rule[lo], nil
	}
	if hi < len(s.first) && (s.first[lo] > at || s.first[hi]-at < at-s.last[lo]) && s.first[hi]>>16 == at>>16 {
		return nil, s.rule[hi]
	}
	return nil, s.rule[lo]
}

// flatten turns the claims of rules into disjoint ranges. Where claims overlap the rule of lowest number has it, so that
// the same policy always names the same rule.
func flatten(claims []span) []span {
	points := make([]uint32, 0, 2*len(claims))
	for _, c := range claims {
		points = append(points, c.first, c.last+1)
	}
	slices.Sort(points)
	points = slices.Compact(points)

	// Cell i is [points[i], points[i+1]). free[i] leads to the first cell from i on that no rule has yet.
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
	slices.SortFunc(claims, func(a, b span) int { return a.rule - b.rule })
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
		out = append(out, span{points[i], last, rule})
	}
	return out
}

// shelf keeps one copy of each distinct services.
type shelf struct {
	rules []proto.Origin
	known map[string]*services
}

// services returns the shared services of the claims, nil for none.
func (h *shelf) services(claims []span) *services {
	if len(claims) == 0 {
		return nil
	}
	flat := flatten(claims)
	id := make([]byte, 0, 12*len(flat))
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
		rule:  make([]*proto.Origin, len(flat)),
	}
	for i, c := range flat {
		s.first[i], s.last[i], s.rule[i] = c.first, c.last, &h.rules[c.rule]
	}
	h.known[string(id)] = s
	return s
}
