package acl

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Policy is a valid policy file. It is immutable.
type Policy struct {
	// Name is the name of the file in messages.
	Name      string
	Groups    map[string]Group    // by "group:eng"
	Hosts     map[string]Host     // by name
	TagOwners map[string]TagOwner // by "tag:db"
	IPSets    map[string]IPSet    // by "ipset:name"
	Postures  map[string]Posture  // by "posture:managed"
	// Rules are those of acls, then of grants, deny and enforcement, each in the order of the file.
	Rules     []Rule
	Approvers Approvers
	NodeAttrs []NodeAttr
	SSH       []SSHRule
	Tests     []Test
	SSHTests  []SSHTest
	Session   Session
	Outage    Outage
	Node      NodeTerms
	Admission []Admission
}

// Pos is a position in the file, from 1; columns count characters.
type Pos struct {
	Line, Column int
}

// Place is where something is in the file.
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

// TagOwner specifies who may give a tag to a machine.
type TagOwner struct {
	Place
	Tag    string     // "tag:db"
	Owners []Selector // users, groups, tags, autogroup:member or autogroup:tagged
}

// IPSet is a named set of addresses; what it removes has been subtracted already.
type IPSet struct {
	Place
	Name     string         // "ipset:prod"
	Prefixes []netip.Prefix // sorted, masked, disjoint
}

// Posture is a named list of conditions on a node, all of which must hold.
type Posture struct {
	Place
	Name       string // "posture:managed"
	Conditions []Condition
}

// Operator compares a fact with the values of a condition.
type Operator uint8

// The operators of conditions. A comparison with an unset fact is false, even if it is negated.
const (
	Equal Operator = iota + 1
	NotEqual
	Less
	LessOrEqual
	Greater
	GreaterOrEqual
	In
	NotIn
	IsSet
	NotSet
)

// Condition is one line of a posture, such as node:os == 'linux'.
type Condition struct {
	Place
	Fact   string // node:os
	Op     Operator
	Values []string // one; several for In and NotIn; none for IsSet and NotSet
	Text   string   // as it was written
}

// Action is what a rule does with a connection that it matches.
type Action uint8

// The actions. Deny takes precedence over every other rule; Monitor passes what no rule allows, and logs it.
const (
	Allow Action = iota
	Deny
	Monitor
)

// Rule decides about the connections from its sources to its destinations. The order of rules never matters.
type Rule struct {
	Place  // acls[2], grants[0], deny[1] or enforcement[0]
	Action Action
	Src    []Selector
	Dst    []Destination
	// Postures are names of postures, one of which must hold for the source; empty means no requirement.
	Postures []string
	// Auth is what is required of the login of the source's user; nil means nothing.
	Auth *Auth
	// Via are tags: the rule applies only if a router that has one of them serves the destination. Empty means any path.
	Via []string
	// App are capabilities sent to the destination, by name: a list of JSON objects each.
	App map[string][]json.RawMessage
	// Until is when a Monitor rule ends, in UTC and whole seconds; zero for all others.
	Until time.Time
}

// Auth is how recently and how strongly a user must have logged in.
type Auth struct {
	Place
	Age time.Duration // 0: any
	MFA bool
}

// Session is the default maximum age of a user's login; MaxAge 0 means no limit.
type Session struct {
	Place
	MaxAge time.Duration
}

// Outage is how long nodes go on without their coordinator. Nil means the mesh's default.
type Outage struct {
	Place
	Grace, Posture *time.Duration
}

// NodeTerms are the terms of nodes' certificates.
type NodeTerms struct {
	Place
	CertLifetime time.Duration            // 0: the mesh's default
	ByTag        map[string]time.Duration // overrides
}

// Approvers specify which routes need no approval by hand.
type Approvers struct {
	Routes   []RouteApprover
	ExitNode []Selector
}

// RouteApprover approves routes within a prefix for the nodes that one of its selectors selects.
type RouteApprover struct {
	Place
	Prefix netip.Prefix
	By     []Selector
}

// NodeAttr gives attributes to nodes.
type NodeAttr struct {
	Place
	Target []Selector
	Attrs  []string
	App    map[string][]json.RawMessage
}

// SSHRule specifies who may log in where, as whom.
type SSHRule struct {
	Place
	Check       bool // action "check": the user must have logged in within CheckPeriod
	Src, Dst    []Selector
	Users       []string // login names, or autogroup:nonroot, or localpart:*@domain
	CheckPeriod time.Duration
	Always      bool // checkPeriod "always"
	AcceptEnv   []string
	Postures    []string
}

// SSHTest is an assertion about SSHRules.
type SSHTest struct {
	Place
	Src                 Selector
	Dst                 []Selector
	Accept, Deny, Check []string // login names
	Facts               map[string]string
}

// Destination is a selector and what may be opened there.
type Destination struct {
	Selector
	// Services are sorted and merged. There are none if a rule is only about App. In Deny rules * means every protocol, and
	// Monitor rules apply to every service of every protocol.
	Services []proto.Service
}

// Kind is the kind of a selector.
type Kind uint8

// The kinds of selectors, in the order in which they are tried.
const (
	Literal    Kind = iota + 1 // an address, a CIDR, or the name of a host: literal addresses of one family
	Any                        // *: every address of the mesh
	User                       // ann@example.com, or ann@ for a login name without a domain
	Domain                     // user:*@example.com: every user of a domain
	GroupOf                    // group:eng
	Tag                        // tag:db
	Member                     // autogroup:member: every node of a user
	Tagged                     // autogroup:tagged: every node with a tag
	Self                       // autogroup:self: the other nodes of the same user
	AddressSet                 // ipset:prod: the addresses of a set
	Internet                   // autogroup:internet: what can be reached through exit nodes
	DangerAll                  // autogroup:danger-all: every address
	Role                       // autogroup:admin and the like: users with a role
)

// Selector selects nodes by identity, or addresses literally.
type Selector struct {
	Place
	Kind Kind
	// Text is the selector as it was written, without ports.
	Text string
	// Name is the login name of a User (without the @ of "ann@"), the domain of a Domain; else the text.
	Name string
	// Prefix is what a Literal covers, masked.
	Prefix netip.Prefix
	// Prefixes is what an AddressSet or Internet covers, sorted; it is shared and must not be changed.
	Prefixes []netip.Prefix
}

// Set returns the name of the set, in a netmap, of the nodes that the selector selects by identity. It is empty for selectors
// that are not about identity, and for Self, which is a different set for each user.
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
	case Role:
		return s.Name
	}
	return ""
}

// UserSet returns the name of the set of one user's nodes: "user:" and the selector for the user.
func UserSet(login string) string {
	if strings.Contains(login, "@") {
		return "user:" + login
	}
	return "user:" + login + "@"
}

// DomainOf returns what follows the last @ of a login name, or "" if there is none.
func DomainOf(login string) string {
	if i := strings.LastIndexByte(login, '@'); i >= 0 {
		return login[i+1:]
	}
	return ""
}

// Test is an assertion about the policy that is checked before the policy is applied.
type Test struct {
	Place // tests[0]
	Src   Selector
	// Protocols are those that are tried: the one that the test names, or tcp and udp, of which one suffices.
	Protocols []uint8
	Accept    []Target // every address of Src reaches these
	Deny      []Target // no address of Src reaches these
	// Facts are those that the source is assumed to have; nil if the test names none.
	Facts map[string]string
}

// Target is a destination of a test.
type Target struct {
	Selector
	Port uint16
	// Full is the target as it was written, with its port.
	Full string
}
