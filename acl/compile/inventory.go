package compile

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Inventory is what is known about the nodes of a mesh at one moment. It must not change while it is used. A node has exactly
// one address of each family; those that lack one are ignored.
type Inventory interface {
	Node(proto.NodeID) (proto.Identity, bool)
	// ByUser lists the nodes of the user with that login name.
	ByUser(login string) iter.Seq[proto.NodeID]
	// ByTag lists the nodes with that tag, such as "tag:db".
	ByTag(tag string) iter.Seq[proto.NodeID]
	All() iter.Seq[proto.NodeID]
	ByAddr(netip.Addr) (proto.NodeID, bool)
	// Traits returns what is known about a node besides its identity.
	Traits(proto.NodeID) Traits
	// Routers lists the nodes that advertise or have approved routes.
	Routers() iter.Seq[proto.NodeID]
	// Roles lists a user's roles in the mesh, such as "admin", by login name.
	Roles(login string) []string
	// Now is the time that the inventory describes: ages are relative to it.
	Now() time.Time
}

// Traits is what is known about a node besides its identity. It never changes.
type Traits struct {
	// Facts are those that are set, by name, such as node:os. Expired facts are absent.
	Facts map[string]string
	// Advertised are the routes that the node offers, Approved those that an administrator approved by hand; both sorted.
	Advertised, Approved []netip.Prefix
	// Admitted reports whether an administrator approved the machine.
	Admitted bool
}

// Memory is an inventory in memory. The zero value is empty.
type Memory struct {
	nodes  map[proto.NodeID]proto.Identity
	byUser map[string]map[proto.NodeID]struct{}
	byTag  map[string]map[proto.NodeID]struct{}
	byAddr map[netip.Addr]proto.NodeID
	traits map[proto.NodeID]Traits
	roles  map[string][]string
	now    time.Time
}

// Put adds a node or replaces the one with its ID. It fails if an address belongs to another node.
func (m *Memory) Put(id proto.Identity) error {
	if id.ID == 0 {
		return fmt.Errorf("node %q has no id", id.Name)
	}
	if !whole(id) {
		return fmt.Errorf("node %q needs an IPv4 and an IPv6 address", id.Name)
	}
	for _, a := range id.Addrs.Slice() {
		if other, ok := m.byAddr[a]; ok && other != id.ID {
			return fmt.Errorf("node %q: address %s belongs to node %q", id.Name, a, m.nodes[other].Name)
		}
	}
	m.Remove(id.ID)
	if m.nodes == nil {
		m.nodes = map[proto.NodeID]proto.Identity{}
		m.byUser = map[string]map[proto.NodeID]struct{}{}
		m.byTag = map[string]map[proto.NodeID]struct{}{}
		m.byAddr = map[netip.Addr]proto.NodeID{}
	}
	m.nodes[id.ID] = id
	if !id.User.IsZero() {
		index(m.byUser, id.User.Name, id.ID)
	}
	for _, t := range id.Tags {
		index(m.byTag, t, id.ID)
	}
	for _, a := range id.Addrs.Slice() {
		m.byAddr[a] = id.ID
	}
	return nil
}

func index(by map[string]map[proto.NodeID]struct{}, key string, id proto.NodeID) {
	if by[key] == nil {
		by[key] = map[proto.NodeID]struct{}{}
	}
	by[key][id] = struct{}{}
}

// SetTraits sets what is known about a node.
func (m *Memory) SetTraits(id proto.NodeID, t Traits) {
	if m.traits == nil {
		m.traits = map[proto.NodeID]Traits{}
	}
	m.traits[id] = t
}

// SetRoles sets a user's roles in the mesh.
func (m *Memory) SetRoles(login string, roles ...string) {
	if m.roles == nil {
		m.roles = map[string][]string{}
	}
	m.roles[login] = roles
}

// SetNow sets the time that the inventory describes.
func (m *Memory) SetNow(t time.Time) { m.now = t }

// Remove removes a node but keeps its traits.
func (m *Memory) Remove(id proto.NodeID) {
	old, ok := m.nodes[id]
	if !ok {
		return
	}
	delete(m.nodes, id)
	delete(m.byUser[old.User.Name], id)
	for _, t := range old.Tags {
		delete(m.byTag[t], id)
	}
	for _, a := range old.Addrs.Slice() {
		delete(m.byAddr, a)
	}
}

// Clone returns an independent copy.
func (m *Memory) Clone() *Memory {
	c := &Memory{traits: maps.Clone(m.traits), roles: maps.Clone(m.roles), now: m.now}
	for _, id := range m.nodes {
		if err := c.Put(id); err != nil {
			panic("an inventory holds what it refuses: " + err.Error())
		}
	}
	return c
}

// Node implements Inventory.
func (m *Memory) Node(id proto.NodeID) (proto.Identity, bool) { n, ok := m.nodes[id]; return n, ok }

// ByUser implements Inventory.
func (m *Memory) ByUser(login string) iter.Seq[proto.NodeID] { return maps.Keys(m.byUser[login]) }

// ByTag implements Inventory.
func (m *Memory) ByTag(tag string) iter.Seq[proto.NodeID] { return maps.Keys(m.byTag[tag]) }

// All implements Inventory.
func (m *Memory) All() iter.Seq[proto.NodeID] { return maps.Keys(m.nodes) }

// ByAddr implements Inventory.
func (m *Memory) ByAddr(a netip.Addr) (proto.NodeID, bool) { id, ok := m.byAddr[a]; return id, ok }

// Traits implements Inventory.
func (m *Memory) Traits(id proto.NodeID) Traits { return m.traits[id] }

// Routers implements Inventory.
func (m *Memory) Routers() iter.Seq[proto.NodeID] {
	return func(yield func(proto.NodeID) bool) {
		for id, t := range m.traits {
			if _, there := m.nodes[id]; there && len(t.Advertised)+len(t.Approved) > 0 && !yield(id) {
				return
			}
		}
	}
}

// Roles implements Inventory.
func (m *Memory) Roles(login string) []string { return m.roles[login] }

// Now implements Inventory.
func (m *Memory) Now() time.Time { return m.now }

// whole reports whether a node has one valid address of each family.
func whole(id proto.Identity) bool {
	return id.Addrs.V4.Is4() && id.Addrs.V6.Is6() && !id.Addrs.V6.Is4In6()
}

// member reports whether a node is a person's machine. Tags replace the user, and a user whose name no policy can contain does
// not exist for policies.
func member(id proto.Identity) bool {
	return !id.User.IsZero() && len(id.Tags) == 0 && acl.CheckUser(strings.TrimPrefix(acl.UserSet(id.User.Name), "user:")) == nil
}

// sortedIDs collects IDs in ascending order, each once.
func sortedIDs(seq iter.Seq[proto.NodeID]) []proto.NodeID { return slices.Compact(slices.Sorted(seq)) }
