package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// MaxSize is the maximum size of an inventory in bytes.
const MaxSize = 64 << 20

const (
	maxEntries = 100_000 // users, nodes
	maxList    = 1000    // tags, routes or facts of one node
	maxText    = 256
)

// DefaultRange is the mesh's IPv4 range if the file has none.
var DefaultRange = netip.MustParsePrefix("100.64.0.0/10")

// Inventory is a mesh as a file describes it.
type Inventory struct {
	*compile.Memory
	Mesh proto.Mesh
	// Nodes are in the order of the file.
	Nodes []proto.Identity
	// Logins maps every name by which a user may be called, which are the name that nodes of the file use and the email address,
	// to the name that the nodes' identities use.
	Logins map[string]string

	byName map[string]proto.NodeID
}

// ByName returns the node with a name.
func (inv *Inventory) ByName(name string) (proto.NodeID, bool) {
	id, ok := inv.byName[name]
	return id, ok
}

// Program compiles a policy, which may be nil, for the mesh. A policy may refer to a user by name (ann@) or by email address.
func (inv *Inventory) Program(policy *acl.Policy) *compile.Program {
	return compile.New(inv.Resolve(policy), inv.Mesh)
}

// Resolve returns the policy with the users renamed to what the nodes' identities call them.
func (inv *Inventory) Resolve(policy *acl.Policy) *acl.Policy {
	if policy == nil {
		return nil
	}
	return policy.Renamed(func(name string) string { return cmp.Or(inv.Logins[name], name) })
}

// Parse parses an inventory. Now is the time that it describes: expiry and ages in a policy are relative to it.
func Parse(src []byte, now time.Time) (*Inventory, error) {
	if len(src) > MaxSize {
		return nil, fmt.Errorf("the inventory has %d bytes; at most %d are read", len(src), MaxSize)
	}
	p := &parser{reader: newReader(src), now: now, inv: &Inventory{
		Memory: &compile.Memory{}, Mesh: proto.Mesh{V4: DefaultRange}, Logins: map[string]string{}, byName: map[string]proto.NodeID{},
	}}
	p.inv.SetNow(now)
	if err := p.file(); err != nil {
		return nil, err
	}
	return p.inv, nil
}

type parser struct {
	*reader
	inv   *Inventory
	now   time.Time
	nodes []node
	users []user
}

type user struct {
	path, name, email string
	roles             []string
}

type node struct {
	path, name, user string
	addrs            proto.Addrs
	tags             []string
	traits           compile.Traits
}

func (p *parser) file() error {
	err := p.fields("", map[string]func(string) error{
		"users": func(path string) error { return p.list(path, maxEntries, p.user) },
		"nodes": func(path string) error { return p.list(path, maxEntries, p.node) },
		"range": p.meshRange,
	})
	if err != nil {
		return err
	}
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return p.wrong("", "something follows the inventory")
	}
	for _, u := range p.users {
		if err := p.addUser(u); err != nil {
			return fmt.Errorf("%s: %w", u.path, err)
		}
	}
	for _, n := range p.nodes {
		if err := p.addNode(n); err != nil {
			return fmt.Errorf("%s: %w", n.path, err)
		}
	}
	return nil
}

func (p *parser) meshRange(path string) error {
	r, err := p.prefix(path)
	if err == nil && !r.Addr().Is4() {
		err = p.wrong(path, "%s is not a range of IPv4", r)
	}
	p.inv.Mesh.V4 = r
	return err
}

func (p *parser) user(path string) error {
	u := user{path: path}
	err := p.fields(path, map[string]func(string) error{
		"name":  func(path string) (err error) { u.name, err = p.text(path); return err },
		"email": func(path string) (err error) { u.email, err = p.optional(path); return err },
		"roles": func(path string) (err error) { u.roles, err = p.texts(path); return err },
	})
	if err == nil && u.name == "" {
		err = p.wrong(path, "the user has no name")
	}
	p.users = append(p.users, u)
	return err
}

func (p *parser) addUser(u user) error {
	login := cmp.Or(u.email, u.name)
	for _, name := range []string{u.name, login} {
		if _, twice := p.inv.Logins[name]; twice {
			return fmt.Errorf("there are two users whom policies would call %q", short(name))
		}
	}
	for _, role := range u.roles {
		if !slices.Contains(acl.Roles, role) {
			return fmt.Errorf("there is no role %q; roles are %s", short(role), strings.Join(acl.Roles, ", "))
		}
	}
	p.inv.Logins[u.name], p.inv.Logins[login] = login, login
	p.inv.SetRoles(login, u.roles...)
	return nil
}

func (p *parser) node(path string) error {
	n := node{path: path}
	err := p.fields(path, map[string]func(string) error{
		"name":       func(path string) (err error) { n.name, err = p.text(path); return err },
		"user":       func(path string) (err error) { n.user, err = p.text(path); return err },
		"ipv4":       func(path string) (err error) { n.addrs.V4, err = p.addr(path, netip.Addr.Is4); return err },
		"ipv6":       func(path string) (err error) { n.addrs.V6, err = p.addr(path, is6); return err },
		"tags":       func(path string) (err error) { n.tags, err = p.tags(path); return err },
		"advertised": func(path string) (err error) { n.traits.Advertised, err = p.prefixes(path); return err },
		"approved":   func(path string) (err error) { n.traits.Approved, err = p.prefixes(path); return err },
		"facts":      func(path string) (err error) { n.traits.Facts, err = p.facts(path); return err },
		"admitted":   func(path string) (err error) { n.traits.Admitted, err = p.boolean(path); return err },
	})
	switch {
	case err != nil:
		return err
	case n.name == "":
		return p.wrong(path, "the node has no name")
	case !n.addrs.V4.IsValid() || !n.addrs.V6.IsValid():
		return p.wrong(path, "%q needs an address of each family: ipv4 and ipv6", n.name)
	case n.user != "" && len(n.tags) > 0:
		return p.wrong(path, "%q has a user and tags; a node is either a person's or what its tags say", n.name)
	case n.user == "" && len(n.tags) == 0:
		return p.wrong(path, "%q has neither a user nor tags", n.name)
	}
	p.nodes = append(p.nodes, n)
	return nil
}

func (p *parser) addNode(n node) error {
	if _, twice := p.inv.byName[n.name]; twice {
		return fmt.Errorf("there are two nodes named %q", n.name)
	}
	if !p.inv.Mesh.V4.Contains(n.addrs.V4) {
		return fmt.Errorf("%s of %q is outside of %s; say \"range\" if the mesh has another one", n.addrs.V4, n.name, p.inv.Mesh.V4)
	}
	if !p.inv.Mesh.V6.IsValid() {
		p.inv.Mesh.V6 = netip.PrefixFrom(n.addrs.V6, 48).Masked()
	}
	if !p.inv.Mesh.V6.Contains(n.addrs.V6) {
		return fmt.Errorf("%s of %q is outside of %s, where the nodes before it are", n.addrs.V6, n.name, p.inv.Mesh.V6)
	}
	id := proto.Identity{ID: proto.NodeID(len(p.inv.Nodes) + 1), Name: n.name, Addrs: n.addrs, Tags: n.tags}
	if n.user != "" {
		login, ok := p.inv.Logins[n.user]
		if !ok {
			return fmt.Errorf("%q is the node of %q, who is not among the users", n.name, n.user)
		}
		id.User = proto.User{Issuer: "inventory", Subject: n.user, Name: login}
		if age, ok := n.traits.Facts["user:authAge"]; ok {
			seconds, err := strconv.ParseUint(age, 10, 32)
			if err != nil {
				return fmt.Errorf("user:authAge of %q is %q; it is a number of seconds", n.name, age)
			}
			id.User.AuthTime = p.now.Add(-time.Duration(seconds) * time.Second)
		}
	}
	if err := p.inv.Put(id); err != nil {
		return err
	}
	p.inv.SetTraits(id.ID, n.traits)
	p.inv.byName[n.name] = id.ID
	p.inv.Nodes = append(p.inv.Nodes, id)
	return nil
}

func (p *parser) addr(path string, fits func(netip.Addr) bool) (netip.Addr, error) {
	s, err := p.text(path)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !fits(a) || a.Zone() != "" {
		return netip.Addr{}, p.wrong(path, "%q is no such address", short(s))
	}
	return a, nil
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

func (p *parser) prefix(path string) (netip.Prefix, error) {
	s, err := p.text(path)
	if err != nil {
		return netip.Prefix{}, err
	}
	r, err := netip.ParsePrefix(s)
	switch {
	case err != nil || r.Addr().Is4In6():
		return netip.Prefix{}, p.wrong(path, "%q is no range of addresses such as 10.33.0.0/16", short(s))
	case r != r.Masked():
		return netip.Prefix{}, p.wrong(path, "%q has bits behind its length; write %s", s, r.Masked())
	}
	return r, nil
}

func (p *parser) prefixes(path string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	err := p.list(path, maxList, func(path string) error {
		r, err := p.prefix(path)
		if err == nil && slices.Contains(out, r) {
			err = p.wrong(path, "%s is there twice", r)
		}
		out = append(out, r)
		return err
	})
	slices.SortFunc(out, proto.ComparePrefix)
	return out, err
}

func (p *parser) tags(path string) ([]string, error) {
	tags, err := p.texts(path)
	if err != nil {
		return nil, err
	}
	for _, t := range tags {
		if err := acl.CheckTag(t); err != nil {
			return nil, p.wrong(path, "%q: %v", short(t), err)
		}
	}
	slices.Sort(tags)
	return tags, nil
}

func (p *parser) facts(path string) (map[string]string, error) {
	out := map[string]string{}
	err := p.members(path, func(key, path string) (err error) {
		if err := acl.CheckFact(key); err != nil {
			return p.wrong(path, "%v", err)
		}
		if len(out) == maxList {
			return p.wrong(path, "more than %d facts", maxList)
		}
		out[key], err = p.scalar(path)
		return err
	})
	return out, err
}
