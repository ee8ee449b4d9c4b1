package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// ipsets reads "ipsets": {"ipset:prod": ["add 10.0.0.0/8", "remove 10.1.0.0/16", "add ipset:lab"], ...}. Each line of a
// set changes the result of the lines before it. Sets may use each other, so the names are read first.
func (p *parser) ipsets(v value) {
	members, ok := p.object(v, "an object of sets of addresses")
	if !ok {
		return
	}
	r := setReader{parser: p, open: map[string]member{}, ranges: map[string]ranges{}}
	for _, m := range members {
		name, ok := strings.CutPrefix(m.key, "ipset:")
		if !ok || !word(name) {
			p.keyErrorf(m, "%s is not a set of addresses; a set is ipset: and a name of letters, digits, -, _ and dots", quote(m.key))
			continue
		}
		p.policy.IPSets[m.key] = IPSet{Place: p.keyPlace(m), Name: m.key}
		r.open[m.key] = m
	}
	for _, m := range members {
		r.read(m.key)
	}
	failed := p.failed
	for name, rs := range r.ranges {
		s := p.policy.IPSets[name]
		s.Prefixes = rs.prefixes()
		p.policy.IPSets[name] = s
		if len(rs) == 0 && !failed {
			p.report(Warning, s.Place, "has no addresses, so rules about it allow nothing")
		}
		if len(s.Prefixes) > maxSidePrefixes {
			p.report(Error, s.Place, "expands to %d prefixes, and a rule has at most %d; use wider ranges, or two sets", len(s.Prefixes), maxSidePrefixes)
		}
	}
}

// setReader reads sets of addresses, each after those that it uses.
type setReader struct {
	*parser
	open   map[string]member // not read yet
	ranges map[string]ranges // done
	path   []string          // sets being read, each because of the one before
	work   int               // ranges visited
}

// Bounds of sets of addresses.
const (
	maxSetDepth = 64        // how deeply sets may be nested
	maxSetWork  = 2_000_000 // ranges visited while reading all sets
)

func (r *setReader) read(name string) {
	m, ok := r.open[name]
	if !ok {
		return
	}
	delete(r.open, name)
	r.path = append(r.path, name)
	defer func() { r.path = r.path[:len(r.path)-1] }()
	var have, next ranges // next batches lines with the same verb: one change costs as much as many of the same kind
	was := "add"
	change := func() {
		r.work += len(have) + len(next)
		if was == "add" {
			have = have.add(next)
		} else {
			have = have.remove(ranges{}.add(next))
		}
		next = next[:0]
	}
	lines, _ := r.list(m.value, `a list such as ["add 10.0.0.0/8", "remove 10.1.0.0/16"]`)
	for _, v := range lines {
		verb, rs, ok := r.line(v)
		if !ok {
			continue
		}
		if verb != was {
			change()
			was = verb
		}
		if next = append(next, rs...); len(next) > maxList {
			change()
		}
		if r.work > maxSetWork || len(have) > maxList {
			r.errorf(v, "the sets up to here expand to too many ranges; use fewer and wider ones")
			r.open = nil
			return
		}
	}
	change()
	r.ranges[name] = have
}

// line parses "add 10.0.0.0/8"; add may be omitted.
func (r *setReader) line(v value) (verb string, rs ranges, ok bool) {
	text, ok := r.str(v, `a line such as "add 10.0.0.0/8"`)
	if !ok {
		return "", nil, false
	}
	verb, operand := "add", strings.TrimSpace(text)
	if first, rest, two := strings.Cut(operand, " "); two {
		verb, operand = first, strings.TrimSpace(rest)
	}
	if verb != "add" && verb != "remove" {
		r.errorf(v, "%s does not begin with add or remove", quote(text))
		return "", nil, false
	}
	rs, ok = r.operand(v, operand)
	return verb, rs, ok
}

// operand parses what a line adds or removes.
func (r *setReader) operand(v value, text string) (ranges, bool) {
	if strings.HasPrefix(text, "ipset:") {
		return r.other(v, text)
	}
	rs, err := r.literal(text)
	if err != nil {
		r.errorf(v, "%v", err)
		return nil, false
	}
	r.warnHostBits(v, text)
	return rs, true
}

// other returns a set that a line uses.
func (r *setReader) other(v value, name string) (ranges, bool) {
	_, defined := r.policy.IPSets[name]
	switch {
	case !defined:
		r.errorf(v, "%v", undefined("set of addresses", name, "ipsets", wanted(r.parser, r.policy.IPSets)))
		return nil, false
	case slices.Contains(r.path, name):
		circle := r.path[slices.Index(r.path, name):]
		r.errorf(v, "sets of addresses use each other in a circle: %s; remove one of these lines", circleText(circle, name))
		return nil, false
	case len(r.path) > maxSetDepth:
		r.errorf(v, "sets are nested more than %d deep; flatten them", maxSetDepth)
		return nil, false
	}
	r.read(name)
	return r.ranges[name], true
}

// literal parses an address, a CIDR, a range such as 10.0.0.1-10.0.0.9, the name of a host, or autogroup:internet.
func (r *setReader) literal(text string) (ranges, error) {
	if text == "autogroup:internet" {
		return internet, nil
	}
	if prefix, ok, err := parseLiteral(text); err != nil {
		return nil, err
	} else if ok {
		return ranges{rangeOf(prefix)}, nil
	}
	if first, last, two := strings.Cut(text, "-"); two {
		a, errA := netip.ParseAddr(first)
		b, errB := netip.ParseAddr(last)
		switch {
		case errA != nil && errB != nil: // the name of a host
		case errA != nil || errB != nil || a.BitLen() != b.BitLen() || a.Zone()+b.Zone() != "" || a.Is4In6() || b.Is4In6():
			return nil, fmt.Errorf("%s is not a range; write two addresses of one family, such as 10.0.0.1-10.0.0.9", quote(text))
		case b.Less(a):
			return nil, fmt.Errorf("the range %s begins after its end; write %s-%s", quote(text), b, a)
		default:
			return ranges{{a, b}}, nil
		}
	}
	for _, kind := range []string{"group:", "tag:", "autogroup:", "user:"} {
		if strings.HasPrefix(text, kind) || strings.Contains(text, "@") {
			return nil, fmt.Errorf("%s: a set of addresses contains only addresses, CIDRs, hosts, other sets and autogroup:internet; name it in the rule next to the set", quote(text))
		}
	}
	h, ok := r.policy.Hosts[strings.TrimPrefix(text, "host:")]
	if !ok {
		return nil, r.undefinedHost(strings.TrimPrefix(text, "host:"))
	}
	return ranges{rangeOf(h.Prefix)}, nil
}

// maxSidePrefixes is how many addresses and ranges a side of a rule may have; the rest is reserved for those of *.
const maxSidePrefixes = proto.MaxRulePrefixes - 64
