package compile

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// standIns returns nodes that do not exist, as a selector would select them: one for a user or a tag, one for each member of a
// group. For autogroup:self it is another node of the source's user. There are none for a group without members, nor for
// addresses that no node of the mesh can have.
func (t *tester) standIns(s acl.Selector, from *party) []party {
	switch s.Kind {
	case acl.Literal:
		return t.literalStandIn(s)
	case acl.User:
		return []party{t.standIn(userNamed(s.Name))}
	case acl.Role:
		return nil // who will have the role is unknown
	case acl.Domain:
		return []party{t.standIn(userNamed("somebody@" + s.Name))}
	case acl.Member:
		return []party{t.standIn(userNamed("somebody"))}
	case acl.Self:
		if from == nil || from.user == "" {
			return nil
		}
		return []party{t.standIn(proto.Identity{User: from.node.User})}
	case acl.Tag:
		return []party{t.standIn(proto.Identity{Tags: []string{s.Name}})}
	case acl.GroupOf:
		var out []party
		for _, m := range t.b.prog.policy.Groups[s.Name].Members {
			out = append(out, t.standIn(userNamed(m.Name)))
		}
		return out
	case acl.Tagged:
		var out []party
		for tag := range t.b.prog.policy.TagOwners {
			out = append(out, t.standIn(proto.Identity{Tags: []string{tag}}))
		}
		slices.SortFunc(out, func(a, b party) int { return slices.Compare(a.node.Tags, b.node.Tags) })
		return out
	}
	return []party{t.standIn(proto.Identity{})}
}

func userNamed(login string) proto.Identity {
	return proto.Identity{User: proto.User{Issuer: proto.IssuerToken, Subject: login, Name: login}}
}

// literalStandIn returns a stand-in with the first address of a prefix in the mesh. An address that a node has, or that is
// behind a router, needs no stand-in.
func (t *tester) literalStandIn(s acl.Selector) []party {
	mesh := t.b.prog.mesh
	a := s.Prefix.Addr()
	if behind := t.behind(a); len(behind) > 0 {
		return behind
	}
	switch {
	case !mesh.V4.Overlaps(s.Prefix) && !mesh.V6.Overlaps(s.Prefix):
		return nil
	case !mesh.Contains(a) && a.Is4():
		a = mesh.V4.Masked().Addr()
	case !mesh.Contains(a):
		a = mesh.V6.Masked().Addr()
	}
	if _, taken := t.b.inv.ByAddr(a); taken {
		return nil
	}
	n := t.newNode(proto.Identity{})
	if a.Is4() {
		n.Addrs.V4 = a
	} else {
		n.Addrs.V6 = a
	}
	return []party{t.party(n, family(a))}
}

// behind returns an address that routers serve, as a party.
func (t *tester) behind(a netip.Addr) []party {
	ends := t.b.endsOf(a, 0)
	if len(ends) == 0 || ends[0].own {
		return nil
	}
	n, _ := t.b.node(ends[0].id)
	p := party{node: n, in: family(a), addr: a, class: &class{}}
	for _, e := range ends {
		p.routers = append(p.routers, e.id)
	}
	return []party{p}
}

func (t *tester) standIn(n proto.Identity) party { return t.party(t.newNode(n), both) }

// newNode gives a stand-in an ID and addresses that no node has.
func (t *tester) newNode(n proto.Identity) proto.Identity {
	for taken := true; taken; {
		t.last++
		n.ID = ^proto.NodeID(t.last)
		_, taken = t.b.inv.Node(n.ID)
	}
	n.Name = fmt.Sprintf("stand-in-%d", t.last)
	t.lastAt = proto.Addrs{V4: t.freeAddr(t.b.prog.mesh.V4, t.lastAt.V4), V6: t.freeAddr(t.b.prog.mesh.V6, t.lastAt.V6)}
	n.Addrs = t.lastAt
	return n
}

// freeAddr returns the next address of a range that no node has and no rule names, as far as a short search finds one.
func (t *tester) freeAddr(r netip.Prefix, after netip.Addr) netip.Addr {
	if !r.IsValid() {
		return netip.Addr{}
	}
	const attempts = 4096
	first := r.Masked().Addr().Next()
	a := first
	if after.IsValid() {
		a = after
	}
	for range attempts {
		a = a.Next()
		if !r.Contains(a) {
			break
		}
		if _, taken := t.b.inv.ByAddr(a); !taken && !reserved.Contains(a) && !t.b.prog.names(a) {
			return a
		}
	}
	return first
}

// names reports whether a rule names an address literally, other than by a range as wide as the mesh.
func (p *Program) names(a netip.Addr) bool {
	for _, x := range []*sideIndex{&p.src, &p.dst} {
		for r := range x.prefixes.Supernets(netip.PrefixFrom(a, a.BitLen())) {
			if r.Bits() > 0 && !slices.Contains(p.any, r) {
				return true
			}
		}
	}
	return false
}
