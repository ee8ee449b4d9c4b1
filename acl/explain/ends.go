package explain

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Book answers questions about a policy on a mesh.
type Book struct {
	policy   *acl.Policy
	inv      *inventory.Inventory
	bound    *compile.Bound
	withheld map[proto.NodeID]map[string]string // why rules are withheld from a node, by the rules' paths
}

// Open returns a Book for a policy and a mesh.
func Open(policy *acl.Policy, inv *inventory.Inventory) *Book {
	policy = inv.Resolve(policy)
	return &Book{policy: policy, inv: inv, bound: compile.New(policy, inv.Mesh).On(inv), withheld: map[proto.NodeID]map[string]string{}}
}

// End is one side of a connection: an address of a node, or one behind it.
type End struct {
	Node proto.Identity // without an ID if the address is nobody's
	Addr netip.Addr
	Own  bool
}

// String returns the end's name and identity.
func (e End) String() string {
	switch {
	case e.Node.ID == 0:
		return e.Addr.String()
	case !e.Own:
		return fmt.Sprintf("%s behind %s", e.Addr, e.Node.Name)
	}
	return fmt.Sprintf("%s (%s)", e.Node.Name, e.Node.Who())
}

// Find returns the ends that a text refers to: an address, a node by name, the nodes of a user or those with a tag.
func (b *Book) Find(text string) ([]End, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return b.at(a.Unmap()), nil
	}
	if id, ok := b.inv.ByName(text); ok {
		return b.ends(slices.Values([]proto.NodeID{id})), nil
	}
	if strings.HasPrefix(text, "tag:") {
		if out := b.ends(b.inv.ByTag(text)); len(out) > 0 {
			return out, nil
		}
		return nil, fmt.Errorf("no node of the inventory has %s", text)
	}
	name := strings.TrimSuffix(text, "@")
	login := cmp.Or(b.inv.Logins[name], name)
	out := slices.DeleteFunc(b.ends(b.inv.ByUser(login)), func(e End) bool { return len(e.Node.Tags) > 0 })
	if len(out) == 0 {
		return nil, fmt.Errorf("%q is no address, and in the inventory neither a node, a tag nor a user who has a node", text)
	}
	return out, nil
}

func (b *Book) ends(ids iter.Seq[proto.NodeID]) []End {
	var out []End
	for _, id := range slices.Sorted(ids) {
		n, _ := b.inv.Node(id)
		for _, a := range n.Addrs.Slice() {
			out = append(out, End{n, a, true})
		}
	}
	return out
}

// at returns the node that has an address, or the routers that serve it.
func (b *Book) at(a netip.Addr) []End {
	if id, ok := b.inv.ByAddr(a); ok {
		n, _ := b.inv.Node(id)
		return []End{{n, a, true}}
	}
	var out []End
	for _, id := range slices.Sorted(b.inv.Routers()) {
		if slices.ContainsFunc(b.bound.Approved(id), func(p netip.Prefix) bool { return serves(p, a) }) {
			n, _ := b.inv.Node(id)
			out = append(out, End{n, a, false})
		}
	}
	if len(out) == 0 {
		return []End{{Addr: a}}
	}
	return out
}

// serves reports whether a route leads to an address: exit nodes lead to the internet only.
func serves(route netip.Prefix, a netip.Addr) bool {
	return route.Contains(a) && (route.Bits() > 0 || isInternet(a))
}

func isInternet(a netip.Addr) bool {
	return slices.ContainsFunc(acl.InternetPrefixes(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// covers reports whether a selector selects an end; other is the end on the other side.
func (b *Book) covers(s acl.Selector, e, other End) bool {
	switch s.Kind {
	case acl.Literal:
		return s.Prefix.Contains(e.Addr)
	case acl.AddressSet:
		return slices.ContainsFunc(s.Prefixes, func(p netip.Prefix) bool { return p.Contains(e.Addr) })
	case acl.Any:
		return !e.Own || b.inv.Mesh.Contains(e.Addr)
	case acl.DangerAll:
		return true
	case acl.Internet:
		return !e.Own && isInternet(e.Addr)
	case acl.Self:
		return e.Own && other.Own && person(e.Node) && person(other.Node) && e.Node.User.Name == other.Node.User.Name
	}
	return e.Own && b.in(s, e.Node)
}

func person(n proto.Identity) bool { return !n.User.IsZero() && len(n.Tags) == 0 }

// in reports whether a selector selects a node by identity.
func (b *Book) in(s acl.Selector, n proto.Identity) bool {
	login := n.User.Name
	switch {
	case s.Kind == acl.Tag:
		return n.HasTag(s.Name)
	case s.Kind == acl.Tagged:
		return len(n.Tags) > 0
	case !person(n):
		return false
	case s.Kind == acl.GroupOf:
		return slices.ContainsFunc(b.policy.Groups[s.Name].Members, func(m acl.Selector) bool { return m.Name == login })
	case s.Kind == acl.User:
		return s.Name == login
	case s.Kind == acl.Domain:
		return acl.DomainOf(login) == s.Name
	case s.Kind == acl.Role:
		return slices.Contains(b.inv.Roles(login), strings.TrimPrefix(s.Name, "autogroup:"))
	}
	return s.Kind == acl.Member
}

// offered returns the routers that advertise a route to an address; the caller has found none that is approved.
func (b *Book) offered(a netip.Addr) []string {
	var out []string
	for id := range b.inv.Routers() {
		if slices.ContainsFunc(b.inv.Traits(id).Advertised, func(p netip.Prefix) bool { return serves(p, a) }) {
			n, _ := b.inv.Node(id)
			out = append(out, n.Name)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return out
}
