package acl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/redoubt-mesh/redoubt/proto"
)

// use is where a selector appears. Not every kind is allowed everywhere.
type use uint8

const (
	inSrc use = iota
	inACLDst
	inGrantDst
	inTestSrc
	inTestDst
	inOwners
	inApprovers
	inVia
	inTarget
	inSSHSrc
	inSSHDst
	inSSHTestSrc
	inSSHTestDst
	inAdmissionTags
	inAdmissionGroups
	inAdmissionUsers
)

// place describes a use.
type place struct {
	name  string
	legal []Kind
	hint  string // what is allowed, for messages
}

// people are the kinds that select nodes by identity, which most places allow.
var people = []Kind{User, GroupOf, Tag, Member, Tagged, Role}

var places = [...]place{
	inSrc:      {"src", with(people, Literal, Any, Domain, AddressSet, DangerAll), ""},
	inACLDst:   {"dst", with(people, Literal, Any, Self, AddressSet, Internet), ""},
	inGrantDst: {"dst", with(people, Literal, Any, Self, AddressSet, Internet), ""},
	inTestSrc:  {"the src of a test", with(people, Literal, Any, Domain, AddressSet), ""},
	inTestDst:  {"the destinations of a test", with(people, Literal, Any, Self), "one address, or nodes by who they are"},
	inOwners: {
		"tagOwners", people,
		"cannot own a tag; owners are users, groups, tags, autogroup:member and the like",
	},
	inApprovers: {
		"autoApprovers", people,
		"cannot approve routes; those who may are users, groups, tags, autogroup:member and the like",
	},
	inVia:        {"via", []Kind{Tag}, "is not a tag; via names the tags of routers"},
	inTarget:     {"target", with(people, Literal, Any, Domain), ""},
	inSSHSrc:     {"the src of ssh", with(people, Domain), "cannot be a source of ssh; those are users, groups, tags, autogroup:member and the like"},
	inSSHDst:     {"the dst of ssh", []Kind{User, Tag, Member, Tagged, Self}, "cannot be a destination of ssh; those are tags, autogroup:self, autogroup:member, autogroup:tagged, and a user who is the source"},
	inSSHTestSrc: {"the src of a test of ssh", with(people, Literal, Domain), ""},
	inSSHTestDst: {"the dst of a test of ssh", with(people, Literal, Self), "cannot be the dst of a test of ssh; name one machine, a user, or tags"},

	inAdmissionTags: {
		"the tags of admission",
		[]Kind{Tag, Tagged},
		"is not a tag; name tags, or autogroup:tagged. An entry without tags, groups and users applies to every node",
	},
	inAdmissionGroups: {
		"the groups of admission",
		[]Kind{GroupOf, Member, Role},
		"is not a group; name groups, autogroup:member and the like. An entry without tags, groups and users applies to every node",
	},
	inAdmissionUsers: {
		"the users of admission",
		[]Kind{User, Domain, Member, Role},
		"is not a user; name users, user:*@DOMAIN or autogroup:member. An entry without tags, groups and users applies to every node",
	},
}

func with(kinds []Kind, more ...Kind) []Kind { return append(slices.Clone(kinds), more...) }

func (u use) String() string { return places[u].name }

// autogroups are the known autogroups; where is the only place that allows one, empty for those allowed almost everywhere.
var autogroups = map[string]struct {
	kind  Kind
	where string
}{
	"autogroup:member":        {Member, ""},
	"autogroup:tagged":        {Tagged, ""},
	"autogroup:self":          {Self, "dst"},
	"autogroup:internet":      {Internet, "dst"},
	"autogroup:danger-all":    {DangerAll, "src"},
	"autogroup:nonroot":       {0, "the users of ssh"},
	"autogroup:owner":         {Role, ""},
	"autogroup:admin":         {Role, ""},
	"autogroup:it-admin":      {Role, ""},
	"autogroup:network-admin": {Role, ""},
	"autogroup:billing-admin": {Role, ""},
	"autogroup:auditor":       {Role, ""},
}

// Roles are the roles that users may have: autogroup:admin selects those with the role admin.
var Roles = []string{"owner", "admin", "it-admin", "network-admin", "billing-admin", "auditor"}

// selector parses a selector. Groups, hosts and tags must have been read before.
func (p *parser) selector(text string, where use) (Selector, error) {
	s, err := p.classify(text)
	if err != nil {
		return Selector{}, err
	}
	return s, legal(s, where)
}

// classify determines what a text selects, trying the kinds in the order that the language fixes.
func (p *parser) classify(text string) (Selector, error) {
	s := Selector{Text: text, Name: text}
	if prefix, ok, err := parseLiteral(text); ok || err != nil {
		s.Kind, s.Prefix = Literal, prefix
		return s, err
	}
	switch {
	case text == "":
		return s, errors.New("is empty; name someone or something")
	case text == "*":
		s.Kind = Any
	case strings.Contains(text, "@"):
		return classifyUser(s)
	case strings.HasPrefix(text, "group:"):
		s.Kind = GroupOf
		if _, ok := p.policy.Groups[text]; !ok {
			return s, undefined("group", text, "groups", wanted(p, p.policy.Groups))
		}
	case strings.HasPrefix(text, "tag:"):
		s.Kind = Tag
		if err := CheckTag(text); err != nil {
			return s, err
		}
		if _, ok := p.policy.TagOwners[text]; !ok {
			return s, undefined("tag", text, "tagOwners", wanted(p, p.policy.TagOwners))
		}
	case strings.HasPrefix(text, "autogroup:"):
		return classifyAutogroup(s)
	case strings.HasPrefix(text, "ipset:"):
		set, ok := p.policy.IPSets[text]
		if !ok {
			return s, undefined("set of addresses", text, "ipsets", wanted(p, p.policy.IPSets))
		}
		s.Kind, s.Prefixes = AddressSet, set.Prefixes
	default:
		h, ok := p.policy.Hosts[text]
		if !ok {
			return s, p.undefinedHost(text)
		}
		s.Kind, s.Prefix = Literal, h.Prefix
	}
	return s, nil
}

func classifyUser(s Selector) (Selector, error) {
	if domain, ok := strings.CutPrefix(s.Text, "user:*@"); ok {
		s.Kind, s.Name = Domain, domain
		if domain == "" || strings.ContainsAny(domain, "@:*/,") || !printable(domain) {
			return s, fmt.Errorf("%s: want user:*@ and a domain, such as user:*@example.com", quote(s.Text))
		}
		return s, nil
	}
	s.Kind, s.Name = User, strings.TrimSuffix(s.Text, "@")
	return s, CheckUser(s.Text)
}

// CheckUser returns an error if a text is not a user selector: ann@example.com, or ann@.
func CheckUser(text string) error {
	name, at, _ := strings.Cut(strings.TrimSuffix(text, "@"), "@")
	switch {
	case !strings.Contains(text, "@"):
		return fmt.Errorf("%s is not a user; a user is written ann@example.com, or ann@ for a name without a domain", quote(text))
	case strings.Contains(text, ":"):
		return fmt.Errorf("%s has an @ and so is read as a user, but a user's name has no colon; names of groups and tags have no @", quote(text))
	case name == "" || strings.ContainsAny(text, "*/,") || strings.Contains(at, "@") || !printable(text):
		return fmt.Errorf("%s is not a user's name; write ann@example.com, or ann@ for a name without a domain", quote(text))
	}
	return nil
}

func classifyAutogroup(s Selector) (Selector, error) {
	a, ok := autogroups[s.Text]
	if !ok {
		return s, fmt.Errorf("there is no %s; %s", quote(s.Text), didYouMean(s.Text, autogroups))
	}
	s.Kind = a.kind
	if s.Kind == Internet {
		s.Prefixes = internetPrefixes
	}
	return s, nil
}

// legal returns an error if a kind is not allowed in a place.
func legal(s Selector, where use) error {
	at := places[where]
	if !slices.Contains(at.legal, s.Kind) {
		switch only := autogroups[s.Text].where; {
		case only != "":
			return fmt.Errorf("%s is allowed only in %s, not in %s", s.Text, only, where)
		case s.Kind == Domain && at.hint == "":
			return fmt.Errorf("%s is allowed only in src, not in %s; name a group", quote(s.Text), where)
		case where == inTestDst:
			return fmt.Errorf("%s is a range; a test goes to %s", quote(s.Text), at.hint)
		case at.hint != "":
			return fmt.Errorf("%s %s", quote(s.Text), at.hint)
		}
		return fmt.Errorf("%s is not allowed in %s", quote(s.Text), where)
	}
	if s.Kind != Literal {
		return nil
	}
	switch {
	case where == inGrantDst && s.Prefix.Bits() == 0 && strings.Contains(s.Text, "/"):
		return fmt.Errorf("%s: to allow all addresses of the mesh write *, and for those beyond exit nodes autogroup:internet", quote(s.Text))
	case where == inTestDst && (!s.Prefix.IsSingleIP() || strings.Contains(s.Text, "/")):
		return fmt.Errorf("%s is a range; a test goes to one address, or to nodes by who they are", quote(s.Text))
	case (where == inSSHTestDst || where == inSSHTestSrc) && !s.Prefix.IsSingleIP():
		return fmt.Errorf("%s is a range; a test of ssh is about one address, or nodes by who they are", quote(s.Text))
	}
	return nil
}

// parseLiteral parses an address or a CIDR; ok reports whether the text is meant as one.
func parseLiteral(text string) (prefix netip.Prefix, ok bool, err error) {
	addr, bits, isCIDR := strings.Cut(text, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil {
		if isCIDR {
			return netip.Prefix{}, true, fmt.Errorf("%s is not a CIDR; write an address and a length, such as 10.0.0.0/8", quote(text))
		}
		return netip.Prefix{}, false, nil
	}
	switch {
	case a.Zone() != "":
		return netip.Prefix{}, true, fmt.Errorf("%s has a zone; overlay addresses have none", quote(text))
	case a.Is4In6():
		return netip.Prefix{}, true, fmt.Errorf("%s is an IPv4-mapped IPv6 address; write it as %s", quote(text), a.Unmap())
	case !isCIDR:
		return netip.PrefixFrom(a, a.BitLen()), true, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, true, fmt.Errorf("%s is not a CIDR; the length of %s is 0 to %d, not %s", quote(text), a, a.BitLen(), quote(bits))
	}
	return p.Masked(), true, nil
}

// splitPorts splits "SELECTOR:PORTS" at the last colon. IPv6 addresses may be in brackets.
func splitPorts(text string) (sel, ports string, err error) {
	i := strings.LastIndexByte(text, ':')
	sel, ports = text[:max(0, i)], text[i+1:]
	if sel == "" || ports == "" {
		return "", "", fmt.Errorf("%s: want SELECTOR:PORTS, such as tag:db:5432 or *:22", quote(text))
	}
	if !strings.HasPrefix(sel, "[") {
		return sel, ports, nil
	}
	inner, length, ok := strings.Cut(sel[1:], "]")
	a, err := netip.ParseAddr(inner)
	if !ok || err != nil || !a.Is6() || length != "" && length[0] != '/' {
		return "", "", fmt.Errorf("%s: brackets stand around an IPv6 address, as in [fd00::1]:22 or [fd00::]/64:22", quote(text))
	}
	return inner + length, ports, nil
}

// shown returns a text for use in an example.
func shown(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}

// CheckTag returns an error if a text is not the name of a tag.
func CheckTag(tag string) error {
	if !proto.ValidTag(tag) {
		return fmt.Errorf("%s is not a tag; a tag is tag: and a name of letters, digits, - and _ that starts with a letter, "+
			"of %d characters at most", quote(tag), proto.MaxTag)
	}
	return nil
}

func checkGroup(group string) error {
	name, ok := strings.CutPrefix(group, "group:")
	if !ok || !word(name) {
		return fmt.Errorf("%s is not a group; a group is group: and a name of letters, digits, -, _ and dots", quote(group))
	}
	return nil
}

// word reports whether a name has only letters, digits, dashes, underscores and dots, and is not too long.
func word(s string) bool {
	for i := range len(s) {
		if c := s[i]; !letter(c) && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// Bounds of names: those of groups and hosts, and those of users and domains, which with "user:*@" become names of sets.
const (
	maxName  = 128
	maxLogin = proto.MaxName - 16
)

func letter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// printable reports whether a name is plain text without spaces.
func printable(s string) bool {
	return proto.ValidText(s, maxLogin) && !strings.ContainsFunc(s, unicode.IsSpace)
}

// wanted returns the names among which to search for suggestions. After more errors than anyone reads it returns none:
// comparing everything with everything would take too long in a malicious file.
func wanted[V any](p *parser, defined map[string]V) map[string]V {
	const enough = 100
	if len(p.diags) > enough {
		return nil
	}
	return defined
}

func undefined[V any](what, name, section string, defined map[string]V) error {
	if near := nearest(name, defined); near != "" {
		return fmt.Errorf("%s %s is not defined in %s; did you mean %q?", what, quote(name), section, near)
	}
	return fmt.Errorf("%s %s is not defined in %s; define it there or correct the name", what, quote(name), section)
}

// undefinedHost returns the error for a text that is nothing else and no host: usually a typo in a prefix, or a forgotten prefix.
func (p *parser) undefinedHost(text string) error {
	if near := nearest(text, wanted(p, p.policy.Hosts)); near != "" {
		return fmt.Errorf("host %s is not defined in hosts; did you mean %q?", quote(text), near)
	}
	if _, ok := p.policy.Groups["group:"+text]; ok {
		return fmt.Errorf("host %s is not defined in hosts; did you mean %q?", quote(text), "group:"+text)
	}
	if _, ok := p.policy.TagOwners["tag:"+text]; ok {
		return fmt.Errorf("host %s is not defined in hosts; did you mean %q?", quote(text), "tag:"+text)
	}
	if strings.Contains(text, ":") {
		return fmt.Errorf("%s is no selector; want an address, a CIDR, *, a user, group:, tag:, autogroup:, ipset: or a name from hosts", quote(text))
	}
	return fmt.Errorf("host %s is not defined in hosts; define it there, or write a user with its @, group:NAME or tag:NAME", quote(text))
}
