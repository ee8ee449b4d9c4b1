package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// compiler holds what is needed only while a Program is compiled.
type compiler struct {
	*Program
	numbers map[proto.NodeID]int // of peers
}

// identities checks the identities and fills the address tables. An address has one owner.
func (c *compiler) identities(r Ruleset) error {
	if !r.Mesh.V4.IsValid() || !r.Mesh.V4.Addr().Is4() || !r.Mesh.V6.IsValid() || !r.Mesh.V6.Addr().Is6() {
		return fmt.Errorf("the mesh's ranges are %v and %v; want one of each family", r.Mesh.V4, r.Mesh.V6)
	}
	if err := checkAddrs(r.Self); err != nil {
		return err
	}
	c.local = newLocalTable(r)
	c.nodes = newNodeTable(2 * len(r.Peers))
	for n, id := range r.Peers {
		if err := checkAddrs(id); err != nil {
			return err
		}
		if _, twice := c.numbers[id.ID]; twice || id.ID == r.Self.ID {
			return fmt.Errorf("node %v stands there twice", id.ID)
		}
		c.numbers[id.ID] = n
		for _, a := range id.Addrs.Slice() {
			addr := packet.AddrOf(a)
			s := c.nodes.slot(addr)
			if s.node != 0 || c.local.isOwn(addr) {
				return fmt.Errorf("address %v of node %v is another node's too", a, id.ID)
			}
			*s = nodeSlot{addr, n + 1}
		}
	}
	return nil
}

func checkAddrs(id proto.Identity) error {
	if id.ID == 0 || !id.Addrs.V4.Is4() || !id.Addrs.V6.Is6() || id.Addrs.V6.Is4In6() {
		return fmt.Errorf("node %v has addresses %v and %v; want an id and one address of each family",
			id.ID, id.Addrs.V4, id.Addrs.V6)
	}
	return nil
}

// selectors holds the distinct sets and prefixes by which the rules of one direction select peers, each with its rules.
type selectors struct {
	rules    [][]int
	asks     []string // for each, the name of its set if that is conditional
	sets     map[string]int
	prefixes *bart.Table[int]
}

func (s *selectors) add(rule int, sel proto.Selector, sets map[string]*proto.Set) {
	number := func(known bool, n int, asks string) int {
		if !known {
			n = len(s.rules)
			s.rules, s.asks = append(s.rules, nil), append(s.asks, asks)
		}
		s.rules[n] = append(s.rules[n], rule)
		return n
	}
	for _, name := range sel.Sets {
		asks := ""
		if sets[name].Conditional {
			asks = name
		}
		n, known := s.sets[name]
		s.sets[name] = number(known, n, asks)
	}
	for _, p := range sel.Prefixes {
		s.prefixes.Modify(p.Masked(), func(n int, known bool) (int, bool) { return number(known, n, ""), false })
	}
}

// services fills the rows.
func (c *compiler) services(r Ruleset) error {
	sets := make(map[string]*proto.Set, len(r.Sets))
	asks := slices.ContainsFunc(r.Rules, func(r proto.Rule) bool { return r.Conditional })
	for i := range r.Sets {
		s := &r.Sets[i]
		if _, twice := sets[s.Name]; twice {
			return fmt.Errorf("set %q stands there twice", s.Name)
		}
		sets[s.Name] = s
		asks = asks || s.Conditional
	}
	shelf := shelf{rules: make([]ruling, len(r.Rules)), known: make(map[string]*services)}
	var picks [3]selectors
	for _, dir := range []proto.Direction{proto.In, proto.Out} {
		picks[dir] = selectors{sets: make(map[string]int), prefixes: new(bart.Table[int])}
		rows := len(c.peers) + len(c.routed.places)
		c.rows[dir] = make([]*services, rows*c.local.classes)
		if asks {
			c.postures[dir] = make(postures, 2*rows)
		}
	}
	for n, rule := range r.Rules {
		if err := checkRule(rule, sets); err != nil {
			return fmt.Errorf("rule %q (line %d): %w", rule.Origin.Path, rule.Origin.Line, err)
		}
		shelf.rules[n] = ruling{rule.Origin, rule.Action, rule.Until}
		picks[rule.Direction].add(n, rule.Peers, sets)
	}
	for _, dir := range []proto.Direction{proto.In, proto.Out} {
		c.fill(dir, &picks[dir], sets, r.Rules, &shelf)
	}
	return nil
}

func checkRule(r proto.Rule, sets map[string]*proto.Set) error {
	if r.Direction != proto.In && r.Direction != proto.Out {
		return fmt.Errorf("direction %d is neither in nor out", r.Direction)
	}
	if r.Action > proto.Monitor || (r.Action == proto.Monitor) == r.Until.IsZero() {
		return fmt.Errorf("action %v with end %v: rules that monitor have an end, and no others", r.Action, r.Until)
	}
	for _, name := range r.Peers.Sets {
		if _, ok := sets[name]; !ok {
			return fmt.Errorf("there is no set %q", name)
		}
	}
	for _, prefixes := range [][]netip.Prefix{r.Peers.Prefixes, r.Local} {
		for _, p := range prefixes {
			if !p.IsValid() || p.Addr().Is4In6() || p.Masked() != p {
				return fmt.Errorf("%v is not a prefix", p)
			}
		}
	}
	for _, s := range r.Services {
		if s.First > s.Last {
			return fmt.Errorf("ports %d-%d are upside down", s.First, s.Last)
		}
		if !proto.HasPorts(s.Proto) && (s.First != 0 || s.Last != 65535) {
			return fmt.Errorf("protocol %d has no ports, and the service names %d-%d", s.Proto, s.First, s.Last)
		}
	}
	return nil
}

// fill computes the row of each distinct signature once and gives it to all peers that share it.
func (c *compiler) fill(dir proto.Direction, pick *selectors, sets map[string]*proto.Set, rules []proto.Rule, shelf *shelf) {
	memberOf := make([][]int, len(c.peers))
	for name, n := range pick.sets {
		for _, id := range sets[name].Members {
			if peer, ok := c.numbers[id]; ok {
				memberOf[peer] = append(memberOf[peer], n)
			}
		}
	}
	known := make(map[string]shared)
	var chosen []int
	var signature []byte
	fill := func(row int, prefix netip.Prefix, sets []int) {
		chosen = append(chosen[:0], sets...)
		for _, n := range pick.prefixes.Supernets(prefix) {
			chosen = append(chosen, n)
		}
		slices.Sort(chosen)
		is4 := prefix.Addr().Is4()
		signature = append(signature[:0], 0)
		if is4 {
			signature[0] = 4
		}
		for _, n := range slices.Compact(chosen) {
			signature = binary.BigEndian.AppendUint32(signature, uint32(n))
		}
		of, ok := known[string(signature)]
		if !ok {
			numbers := pick.rulesOf(slices.Compact(chosen))
			of.row = c.row(is4, numbers, rules, shelf)
			of.posture = postureOf(pick.asked(slices.Compact(chosen)), conditional(rules, numbers))
			known[string(signature)] = of
		}
		to := c.rows[dir][row*c.local.classes:][:c.local.classes]
		for class, s := range of.row {
			if s != nil {
				to[class] = s
			}
		}
		if c.postures[dir] != nil {
			*c.postures[dir].at(row, is4) = of.posture
		}
	}
	for peer, id := range c.peers {
		for _, addr := range id.Addrs.Slice() {
			fill(peer, netip.PrefixFrom(addr, addr.BitLen()), memberOf[peer])
		}
	}
	for n, p := range c.routed.places {
		fill(len(c.peers)+n, p.prefix, nil) // sets are about nodes, not about what is behind them
	}
}

// shared is what peers with the same signature share.
type shared struct {
	row     []*services
	posture Posture
}

// rulesOf returns the numbers of the rules behind the chosen selectors.
func (s *selectors) rulesOf(chosen []int) (numbers []int) {
	for _, n := range chosen {
		numbers = append(numbers, s.rules[n]...)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}

// row computes what the rules decide for each class of local addresses of one family.
func (c *compiler) row(is4 bool, numbers []int, rules []proto.Rule, shelf *shelf) []*services {
	row := make([]*services, c.local.classes)
	for class, prefix := range c.local.prefix {
		if prefix.Addr().Is4() != is4 {
			continue
		}
		var claims []span
		for _, n := range numbers {
			if !slices.ContainsFunc(rules[n].Local, func(p netip.Prefix) bool { return covers(p, prefix) }) {
				continue
			}
			for _, s := range rules[n].Services {
				claims = append(claims, span{point(s.Proto, s.First), point(s.Proto, s.Last), rankOf(rules[n].Action), n})
			}
		}
		row[class] = shelf.services(claims)
	}
	return row
}
