package proto

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrInvalid is wrapped by every error of Validate, and by every error of Apply except ErrVersion.
var ErrInvalid = errors.New("invalid")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Validate checks that a coordinator may send the netmap and an agent may act on it: it must be sorted, without duplicates and
// within limits, its rules must refer to sets that it has, and its endpoints must be outside the overlay. It does not check the
// certificates in the netmap.
func (n *Netmap) Validate() error {
	if n.Version.IsZero() {
		return invalid("netmap without a version")
	}
	if err := n.Mesh.Validate(); err != nil {
		return err
	}
	if n.Self == 0 {
		return invalid("netmap of no node")
	}
	h := n.head()
	if err := h.validate(); err != nil {
		return err
	}
	if err := checkPeers(n.Peers, n.Mesh, n.Self); err != nil {
		return err
	}
	if err := checkBarred(n.Barred, n.Self); err != nil {
		return err
	}
	if err := n.checkMet(&Delta{UpsertBarred: n.Barred}); err != nil {
		return err
	}
	if err := checkSets(n.Sets); err != nil {
		return err
	}
	if err := checkRules(n.Rules); err != nil {
		return err
	}
	if err := n.checkCounts(); err != nil {
		return err
	}
	return cmp.Or(checkReferences(n.Rules, n.Sets), checkWithheldReferences(n.Withheld, n.Sets))
}

// Validate checks that the mesh has an ID, a domain in lower case, and one masked prefix of each family.
func (m Mesh) Validate() error {
	if err := m.ID.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(m.Domain) > MaxDomain {
		return invalid("domain of %d bytes, at most %d", len(m.Domain), MaxDomain)
	}
	for l := range strings.SplitSeq(m.Domain, ".") {
		if !ValidName(l) {
			return invalid("domain %q: want labels of a-z, 0-9 and - with dots between", shorten(m.Domain))
		}
	}
	if err := checkPrefix(m.V4); err != nil || !m.V4.Addr().Is4() {
		return invalid("IPv4 range %s", m.V4)
	}
	if err := checkPrefix(m.V6); err != nil || !m.V6.Addr().Is6() {
		return invalid("IPv6 range %s", m.V6)
	}
	return nil
}

// ValidName reports whether s can be a node's name: one DNS label in lower case.
func ValidName(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// ValidTag reports whether s is "tag:" and a letter, followed by letters, digits, - and _.
func ValidTag(s string) bool {
	name, ok := strings.CutPrefix(s, "tag:")
	if !ok || name == "" || len(s) > MaxTag || !isLetter(rune(name[0])) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !isLetter(r) && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

func isLetter(r rune) bool { return (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') }

// ValidText reports whether s is printable UTF-8 of 1 to limit bytes.
func ValidText(s string, limit int) bool {
	return s != "" && len(s) <= limit && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Validate checks that i is complete: ID, name, one address of each family, and a user or tags or neither, not both.
func (i Identity) Validate() error {
	if i.ID == 0 {
		return invalid("identity without a node id")
	}
	if !ValidName(i.Name) {
		return invalid("node name %q: want one DNS label of a-z, 0-9 and -", shorten(i.Name))
	}
	if !i.Addrs.V4.Is4() || !i.Addrs.V6.Is6() || i.Addrs.V6.Is4In6() || i.Addrs.V6.Zone() != "" {
		return invalid("overlay addresses of %s: want one of each family", i.Name)
	}
	if len(i.Tags) > MaxTags {
		return invalid("%d tags, at most %d", len(i.Tags), MaxTags)
	}
	for k, t := range i.Tags {
		if !ValidTag(t) {
			return invalid("tag %q: want tag:NAME", shorten(t))
		}
		if k > 0 && i.Tags[k-1] >= t {
			return invalid("tags are not sorted or not unique")
		}
	}
	if i.User.IsZero() {
		if i.User.Name != "" || !i.User.AuthTime.IsZero() {
			return invalid("a user's name without issuer and subject")
		}
		return nil
	}
	if len(i.Tags) != 0 {
		return invalid("both a user and tags")
	}
	for _, s := range []string{i.User.Issuer, i.User.Subject, i.User.Name} {
		if !ValidText(s, MaxUser) {
			return invalid("user: issuer, subject and name are each 1 to %d bytes of printable UTF-8", MaxUser)
		}
	}
	return nil
}

// ValidEndpoint reports whether a node of the mesh may be reached at e: an address of one machine, outside the overlay.
func (m Mesh) ValidEndpoint(e Endpoint) bool {
	a := e.Addr.Addr()
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && e.Addr.Port() != 0 &&
		(e.Kind == EndpointInterface || e.Kind == EndpointObserved) &&
		!a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !m.Contains(a)
}

func checkEndpoints(es []Endpoint, m Mesh) error {
	if len(es) > MaxEndpoints {
		return invalid("%d endpoints, at most %d", len(es), MaxEndpoints)
	}
	for i, e := range es {
		if !m.ValidEndpoint(e) {
			return invalid("endpoint %s (kind %d)", e.Addr, e.Kind)
		}
		if slices.ContainsFunc(es[:i], func(f Endpoint) bool { return f.Addr == e.Addr }) {
			return invalid("endpoint %s twice", e.Addr)
		}
	}
	return nil
}

// check leaves verifying the signature of a path key to those who use the key.
func (r *Reach) check(m Mesh) error {
	if k := r.PathKey; k != nil && (k.Public == [PathKeySize]byte{} || len(k.Signature) == 0 || len(k.Signature) > MaxSignature) {
		return invalid("a path key that is zero, or signed by %d bytes", len(k.Signature))
	}
	return checkEndpoints(r.Endpoints, m)
}

// ValidReach checks that a node of the mesh may report r as its own reach.
func (m Mesh) ValidReach(r Reach) error { return r.check(m) }

func checkPeers(ps []*Peer, m Mesh, self NodeID) error {
	var before NodeID
	for _, p := range ps {
		if p.ID <= before {
			return invalid("peers are not sorted or not unique at %s", p.ID)
		}
		before = p.ID
		if p.ID == self {
			return invalid("node %s is its own peer", self)
		}
		if len(p.Certificate) == 0 || len(p.Certificate) > MaxCertificate {
			return invalid("peer %s: certificate of %d bytes", p.ID, len(p.Certificate))
		}
		if err := cmp.Or(p.check(m), checkRoutes(p.Routes, m)); err != nil {
			return fmt.Errorf("peer %s: %w", p.ID, err)
		}
	}
	return nil
}

// checkRoutes keeps routes off the mesh's own addresses, each of which belongs to one node.
func checkRoutes(ps []netip.Prefix, m Mesh) error {
	if len(ps) > MaxRoutes {
		return invalid("%d routes, at most %d", len(ps), MaxRoutes)
	}
	for i, p := range ps {
		if err := checkPrefix(p); err != nil {
			return err
		}
		if p.Bits() > 0 && (p.Overlaps(m.V4) || p.Overlaps(m.V6)) {
			return invalid("route %s overlaps the mesh's own addresses", p)
		}
		if i > 0 && ComparePrefix(ps[i-1], p) >= 0 {
			return invalid("routes are not sorted or not unique at %s", p)
		}
	}
	return nil
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func checkWithheld(ws []Withheld) error {
	if len(ws) > MaxWithheld {
		return invalid("%d withheld rules, at most %d", len(ws), MaxWithheld)
	}
	for i := range ws {
		if i > 0 && ws[i-1].Key >= ws[i].Key {
			return invalid("withheld rules are not sorted or not unique at %q", ws[i].Key)
		}
		if err := ws[i].validate(); err != nil {
			return fmt.Errorf("withheld rule %q: %w", shorten(ws[i].Key), err)
		}
		if !ValidText(ws[i].Reason, MaxReason) {
			return invalid("the reason of withheld rule %q", ws[i].Key)
		}
	}
	return nil
}

func checkWithheldReferences(ws []Withheld, ss []Set) error {
	for i := range ws {
		if err := checkReferences([]Rule{ws[i].Rule}, ss); err != nil {
			return err
		}
	}
	return nil
}

func checkBarred(bs []Barred, self NodeID) error {
	for i, b := range bs {
		switch {
		case b.ID == 0 || b.ID == self || b.Sequence == 0:
			return invalid("node %s barred up to certificate %d", b.ID, b.Sequence)
		case i > 0 && bs[i-1].ID >= b.ID:
			return invalid("barred nodes are not sorted or not unique at %s", b.ID)
		}
	}
	return nil
}

func checkSets(ss []Set) error {
	for i, s := range ss {
		if !ValidText(s.Name, MaxName) {
			return invalid("name %q of a set", shorten(s.Name))
		}
		if i > 0 && ss[i-1].Name >= s.Name {
			return invalid("sets are not sorted or not unique at %q", s.Name)
		}
		if err := checkIDs(s.Members); err != nil {
			return fmt.Errorf("set %q: %w", s.Name, err)
		}
	}
	return nil
}

func checkIDs(ids []NodeID) error {
	var before NodeID
	for _, id := range ids {
		if id <= before {
			return invalid("node ids are not sorted or not unique at %s", id)
		}
		before = id
	}
	return nil
}

func checkRules(rs []Rule) error {
	for i := range rs {
		if i > 0 && rs[i-1].Key >= rs[i].Key {
			return invalid("rules are not sorted or not unique at %q", rs[i].Key)
		}
		if err := rs[i].validate(); err != nil {
			return fmt.Errorf("rule %q: %w", shorten(rs[i].Key), err)
		}
	}
	return nil
}

func (r *Rule) validate() error {
	switch {
	case !ValidText(r.Key, MaxName):
		return invalid("its key")
	case !ValidText(r.Origin.Path, MaxName) || r.Origin.Line < 0 || int64(r.Origin.Line) > 1<<31-1:
		return invalid("its origin")
	case r.Direction != In && r.Direction != Out:
		return invalid("direction %d", r.Direction)
	case len(r.Peers.Sets) > MaxRuleSets:
		return invalid("%d sets, at most %d", len(r.Peers.Sets), MaxRuleSets)
	case len(r.Peers.Prefixes) > MaxRulePrefixes || len(r.Local) > MaxRulePrefixes:
		return invalid("more than %d prefixes on one side", MaxRulePrefixes)
	case len(r.Services) > MaxServices:
		return invalid("%d services, at most %d", len(r.Services), MaxServices)
	case r.Action > Monitor:
		return invalid("action %d", r.Action)
	case (r.Action == Monitor) == r.Until.IsZero():
		return invalid("a rule has an end where its action is monitor, and only there")
	case !r.Until.Equal(r.Until.Truncate(time.Second)) || r.Until.Unix() < 0 && !r.Until.IsZero():
		return invalid("its end")
	case r.Action == Deny && r.Conditional:
		return invalid("a rule that denies is never conditional")
	case len(r.App) > 0 && (r.Action != Allow || r.Direction != In):
		return invalid("capabilities belong to rules that allow, where they are granted")
	}
	if err := checkCapabilities(r.App); err != nil {
		return err
	}
	for _, list := range [][]netip.Prefix{r.Peers.Prefixes, r.Local} {
		for _, p := range list {
			if err := checkPrefix(p); err != nil {
				return err
			}
		}
	}
	for _, s := range r.Services {
		if s.First > s.Last || (!HasPorts(s.Proto) && (s.First != 0 || s.Last != 65535)) {
			return invalid("service %d:%d-%d", s.Proto, s.First, s.Last)
		}
	}
	return nil
}

func checkCapabilities(cs []Capability) error {
	if len(cs) > MaxCapabilities {
		return invalid("%d capabilities, at most %d", len(cs), MaxCapabilities)
	}
	size := 0
	for i, c := range cs {
		if !ValidText(c.Name, MaxName) || i > 0 && cs[i-1].Name >= c.Name {
			return invalid("capabilities are not sorted, not unique or not printable")
		}
		for _, v := range c.Values {
			if size += len(v); size > MaxCapability {
				return invalid("more than %d bytes of capabilities", MaxCapability)
			}
			if !json.Valid([]byte(v)) {
				return invalid("capability %q: a value that is no JSON", shorten(c.Name))
			}
		}
	}
	return nil
}

func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return invalid("prefix %s", p)
	}
	return nil
}

// checkReferences checks that each set that a rule refers to exists.
func checkReferences(rs []Rule, ss []Set) error {
	for i := range rs {
		for _, name := range rs[i].Peers.Sets {
			if _, ok := slices.BinarySearchFunc(ss, name, func(s Set, n string) int { return cmp.Compare(s.Name, n) }); !ok {
				return invalid("rule %q refers to set %q, which is not there", rs[i].Key, shorten(name))
			}
		}
	}
	return nil
}

func (n *Netmap) checkCounts() error {
	members := 0
	for _, s := range n.Sets {
		members += len(s.Members)
	}
	for _, c := range []struct {
		what    string
		n, most int
	}{
		{"peers", len(n.Peers), MaxPeers},
		{"barred nodes", len(n.Barred), MaxBarred},
		{"sets", len(n.Sets), MaxSets},
		{"members of sets", members, MaxMembers},
		{"rules", len(n.Rules), MaxRules},
	} {
		if c.n > c.most {
			return invalid("%d %s, at most %d", c.n, c.what, c.most)
		}
	}
	return nil
}

func (h *Head) validate() error {
	if len(h.Authorities) > MaxAuthorities {
		return invalid("%d authorities, at most %d", len(h.Authorities), MaxAuthorities)
	}
	for _, a := range h.Authorities {
		if len(a) == 0 || len(a) > MaxCertificate {
			return invalid("authority's certificate of %d bytes", len(a))
		}
	}
	if len(h.Requires) > MaxRequires {
		return invalid("%d required features, at most %d", len(h.Requires), MaxRequires)
	}
	for i, f := range h.Requires {
		if !ValidText(f, MaxName) || (i > 0 && h.Requires[i-1] >= f) {
			return invalid("required features are not sorted, not unique or not printable")
		}
	}
	if g := h.Outage.Grace; g < 0 || g > MaxGrace || g%time.Second != 0 {
		return invalid("outage grace %s: whole seconds up to %s", g, MaxGrace)
	}
	if p := h.Outage.Posture; p < 0 || p > h.Outage.Grace || p%time.Second != 0 {
		return invalid("outage posture %s: whole seconds up to the grace, %s", p, h.Outage.Grace)
	}
	if err := checkRelays(h.Relays); err != nil {
		return err
	}
	return checkWithheld(h.Withheld)
}
