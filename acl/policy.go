package acl

import (
	"net/netip"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Policy is a policy file that was found good. It is immutable.
type Policy struct {
	// Name is what the file is called in messages.
	Name      string
	Groups    map[string]Group    // by "group:eng"
	Hosts     map[string]Host     // by name
	TagOwners map[string]TagOwner // by "tag:db"
	// Rules are the permissions: those of acls, then those of grants, each in the order of the file.
	Rules []Rule
	Tests []Test
}

// Pos is a place in the file, from 1; columns count characters.
type Pos struct {
	Line, Column int
}

// Place is where something stands in the file.
type Place struct {
	Pos
	Path string // such as grants[3].dst[0]
}

// Group is a named list of users. Groups do not nest.
type Group struct {
	Place
	Name    string     // "group:eng"
	Members []Selector // of kind User
}

// Host is a name for an address or a range of addresses.
type Host struct {
	Place
	Name   string
	Prefix netip.Prefix // masked
}

// TagOwner says who may give a tag to a machine.
type TagOwner struct {
	Place
	Tag    string     // "tag:db"
	Owners []Selector // users, groups, tags, autogroup:member or autogroup:tagged
}

// Rule permits what its sources open to its destinations. Rules only permit; their order never matters.
type Rule struct {
	Place // acls[2] or grants[0]
	Src   []Selector
	Dst   []Destination
}

// Destination is a selector with what may be opened there.
type Destination struct {
	Selector
	Services []proto.Service // sorted, merged
}

// Kind is what a selector picks by.
type Kind uint8

// The kinds of selectors, in the order in which a text is tried.
const (
	Literal Kind = iota + 1 // an address, a CIDR, or the name of a host: literal addresses of one family
	Any                     // *: every address of the mesh
	User                    // ann@example.com, or ann@ for a login name without a domain
	Domain                  // user:*@example.com: everyone of a domain
	GroupOf                 // group:eng
	Tag                     // tag:db
	Member                  // autogroup:member: every node of a user
	Tagged                  // autogroup:tagged: every node with a tag
	Self                    // autogroup:self: the other nodes of the same user
)

// Selector picks nodes by who they are, or addresses literally.
type Selector struct {
	Place
	Kind Kind
	// Text is the selector as it was written, without ports.
	Text string
	// Name is the login name of a User (without the @ of "ann@"), the domain of a Domain; else the text.
	Name string
	// Prefix is what a Literal covers, masked.
	Prefix netip.Prefix
}

// Set is the name under which a netmap lists the nodes that the selector picks by identity; empty for selectors that are
// not about identity, and for Self, which is another set for each user.
func (s Selector) Set() string {
	switch s.Kind {
	case User:
		return UserSet(s.Name)
	case Domain:
		return "user:*@" + s.Name
	case GroupOf, Tag:
		return s.Name
	case Member:
		return "autogroup:member"
	case Tagged:
		return "autogroup:tagged"
	}
	return ""
}

// UserSet is the name of the set of one user's nodes: "user:" and the selector that picks the user.
func UserSet(login string) string {
	if strings.Contains(login, "@") {
		return "user:" + login
	}
	return "user:" + login + "@"
}

// DomainOf is what stands behind the last @ of a login name; empty where there is none.
func DomainOf(login string) string {
	if i := strings.LastIndexByte(login, '@'); i >= 0 {
		return login[i+1:]
	}
	return ""
}

// Test is a claim about the policy that is checked before the policy is applied.
type Test struct {
	Place // tests[0]
	Src   Selector
	// Protocols are those that the test is about: the one that it names, or tcp and udp, of which one is enough.
	Protocols []uint8
	Accept    []Target // every address of Src reaches these
	Deny      []Target // no address of Src reaches these
}

// Target is a destination of a test.
type Target struct {
	Selector
	Port uint16
	// Full is the target as it was written, with its port.
	Full string
}
