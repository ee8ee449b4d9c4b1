package compile_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// The law is the whole language as a person reads its description, on top of the naive evaluator. It goes through all rules
// for each connection and shares nothing with the compiler.

type lawFile struct {
	document
	Postures      map[string][]string `json:"postures,omitempty"`
	IPSets        map[string][]string `json:"ipsets,omitempty"`
	AutoApprovers map[string]any      `json:"autoApprovers,omitempty"`
	Session       map[string]string   `json:"session,omitempty"`
	Grants        []lawRule           `json:"grants,omitempty"`
	Deny          []lawRule           `json:"deny,omitempty"`
	Enforcement   []lawRule           `json:"enforcement,omitempty"`
}

type lawRule struct {
	Src        []string       `json:"src"`
	Dst        []string       `json:"dst"`
	IP         []string       `json:"ip,omitempty"`
	Via        []string       `json:"via,omitempty"`
	SrcPosture []string       `json:"srcPosture,omitempty"`
	Auth       map[string]any `json:"auth,omitempty"`
	Mode       string         `json:"mode,omitempty"`
	Until      string         `json:"until,omitempty"`
}

func (f lawFile) bytes() []byte {
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		panic(err)
	}
	return b
}

// spot is an address: a node's own, or one behind a router.
type spot struct {
	endpoint
	behind, exit bool
}

var (
	lawPackets = []packet{{6, 443}, {6, 22}, {1, 0}, {47, 0}}

	lawNow    = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	lawRoutes = []string{"10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd00:2::/64", "0.0.0.0/0", "::/0"}
	outside   = []string{"10.1.0.5", "10.1.2.5", "10.2.0.9", "8.8.8.8", "2600::1", "fd00:2::5"}
	lawWords  = []string{"10.0.0.0/8", "10.1.2.0/24", "10.1.2.5", "8.8.8.8", "fd00:2::/48", "ipset:some", "0.0.0.0/1"}
	lawFacts  = map[string][]string{
		"node:os": {"linux", "macos"}, "custom:level": {"1", "2", "10"}, "device:attestation": {"token", "tpm-unverified", "tpm"},
		"user:mfa": {"true", "false"}, "node:osVersion": {"10.9", "10.15"},
	}
	lawPostures = map[string][]string{
		"posture:linux": {"node:os == 'linux'"}, "posture:good": {"custom:level >= 2", "device:attestation >= 'x509'"},
		"posture:other": {"node:os != 'linux'", "custom:level NOT IN ['1']"}, "posture:new": {"node:osVersion > '10.9'"},
		"posture:unset": {"custom:level NOT SET"}, "posture:recent": {"user:authAge < 1800"},
	}
)

type law struct {
	file lawFile
	inv  *compile.Memory
}

// word reports whether one selector covers a spot.
func (l law) word(sel string, at, other spot, deny, source bool) bool {
	prefixes := []string{sel}
	if sel == "ipset:some" {
		prefixes = l.file.IPSets[sel]
	}
	if h, ok := l.file.Hosts[sel]; ok {
		prefixes = []string{h}
	}
	literal := false
	for _, s := range prefixes {
		p, err := netip.ParsePrefix(s)
		if a, bad := netip.ParseAddr(s); bad == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			continue
		}
		literal = true
		if p.Contains(at.addr) || deny && !at.behind && (p.Contains(at.node.Addrs.V4) || p.Contains(at.node.Addrs.V6)) {
			return true
		}
	}
	switch {
	case literal:
		return false
	case sel == "autogroup:danger-all":
		return true
	case sel == "autogroup:internet":
		return at.exit
	case sel == "*" && deny:
		return true
	case sel == "*" && at.behind:
		return !source || !at.exit
	case at.behind:
		return false
	case sel == "autogroup:admin":
		return len(at.node.Tags) == 0 && slices.Contains(l.inv.Roles(at.node.User.Name), "admin")
	}
	return naive{l.file.document, testMesh}.selects(sel, at.endpoint, other.endpoint)
}

// fact evaluates a condition of the postures above: 1 for true, 0 for false, -1 if the fact is not set.
func (l law) fact(line string, n proto.Identity) int {
	set := l.inv.Traits(n.ID).Facts
	is := func(name string, f func(string) bool) int {
		v, ok := set[name]
		switch {
		case !ok:
			return -1
		case f(v):
			return 1
		}
		return 0
	}
	switch line {
	case "node:os == 'linux'":
		return is("node:os", func(v string) bool { return v == "linux" })
	case "node:os != 'linux'":
		return is("node:os", func(v string) bool { return v != "linux" })
	case "custom:level >= 2":
		return is("custom:level", func(v string) bool { return v != "1" })
	case "custom:level NOT IN ['1']":
		return is("custom:level", func(v string) bool { return v != "1" })
	case "device:attestation >= 'x509'":
		return is("device:attestation", func(v string) bool { return v != "token" })
	case "node:osVersion > '10.9'":
		return is("node:osVersion", func(v string) bool { return v == "10.15" })
	case "user:authAge < 1800":
		return l.age(n, 30*time.Minute-time.Second)
	}
	panic("the test made the condition " + line)
}

func (l law) age(n proto.Identity, most time.Duration) int {
	switch {
	case len(n.Tags) > 0 || n.User.AuthTime.IsZero():
		return -1
	case lawNow.Sub(n.User.AuthTime) <= most:
		return 1
	}
	return 0
}

// asked reports whether the conditions of a rule on its source hold.
func (l law) asked(r lawRule, from spot, kind string) bool {
	deny := kind == "deny"
	good := func(t int) bool { return t == 1 || deny && t == -1 }
	if len(r.SrcPosture) > 0 && (!from.behind || !deny) {
		if from.behind {
			return false
		}
		if !slices.ContainsFunc(r.SrcPosture, func(p string) bool {
			return !slices.ContainsFunc(l.file.Postures[p], func(c string) bool {
				if c == "custom:level NOT SET" {
					_, set := l.inv.Traits(from.node.ID).Facts["custom:level"]
					return set
				}
				return !good(l.fact(c, from.node))
			})
		}) {
			return false
		}
	}
	if kind != "grants" {
		return true
	}
	if _, ok := r.Auth["age"]; ok {
		if from.behind || l.age(from.node, time.Hour) != 1 {
			return false
		}
	} else if l.file.Session != nil && (from.behind || len(from.node.Tags) == 0 && l.age(from.node, 12*time.Hour) != 1) {
		return false
	}
	return r.Auth["mfa"] != true || !from.behind && l.inv.Traits(from.node.ID).Facts["user:mfa"] == "true"
}

// about reports whether a rule covers a connection; p is nil for any service.
func (l law) about(kind string, r lawRule, from, to spot, p *packet) bool {
	if !l.asked(r, from, kind) {
		return false
	}
	if len(r.Via) > 0 && (!to.behind || !slices.ContainsFunc(r.Via, to.node.HasTag)) {
		return false
	}
	if !slices.ContainsFunc(r.Dst, func(d string) bool {
		return l.word(d, to, from, kind == "deny", false) && slices.ContainsFunc(r.Src, func(s string) bool {
			return l.word(s, from, to, kind == "deny", true)
		})
	}) {
		return false
	}
	if p == nil || kind == "enforcement" {
		return true
	}
	return slices.ContainsFunc(r.IP, func(ip string) bool {
		name, ports, ok := strings.Cut(ip, ":")
		if !ok {
			name, ports = "", ip
		}
		return kind == "deny" && ip == "*" || open(name, ports, p.protocol, p.port)
	})
}

func (l law) verdict(from, to spot, p packet) (allowed, watched bool) {
	any := func(kind string, rules []lawRule) bool {
		return slices.ContainsFunc(rules, func(r lawRule) bool { return l.about(kind, r, from, to, &p) })
	}
	if from.node.ID == to.node.ID || from.addr.Is4() != to.addr.Is4() || any("deny", l.file.Deny) {
		return false, false
	}
	if any("grants", l.file.Grants) {
		return true, false
	}
	watched = any("enforcement", l.file.Enforcement)
	return watched, watched
}

// nodes describes the nodes for failure messages.
func (l law) nodes() string {
	var out strings.Builder
	for _, id := range slices.Sorted(l.inv.All()) {
		n, _ := l.inv.Node(id)
		fmt.Fprintf(&out, "%+v %+v %v\n", n, l.inv.Traits(id), l.inv.Roles(n.User.Name))
	}
	return out.String()
}

// spots returns all addresses of nodes, and some behind routers.
func (l law) spots() []spot {
	var out []spot
	for _, e := range endpoints(l.inv) {
		out = append(out, spot{endpoint: e})
	}
	for id := range l.inv.All() {
		n, _ := l.inv.Node(id)
		for _, s := range outside {
			a := netip.MustParseAddr(s)
			for _, r := range l.inv.Traits(id).Advertised {
				exit := r.Bits() == 0
				if !r.Contains(a) || exit && (strings.HasPrefix(s, "10.") || strings.HasPrefix(s, "fd")) || !l.approved(n, r) {
					continue
				}
				x := spot{endpoint{n, a}, true, exit}
				if !slices.ContainsFunc(out, func(y spot) bool { return x.node.ID == y.node.ID && x.addr == y.addr }) {
					out = append(out, x)
				}
			}
		}
	}
	return out
}

func (l law) approved(n proto.Identity, route netip.Prefix) bool {
	if slices.Contains(l.inv.Traits(n.ID).Approved, route) {
		return true
	}
	if route.Bits() == 0 {
		return n.HasTag("tag:a")
	}
	return n.HasTag("tag:b") && netip.MustParsePrefix("10.1.0.0/16").Overlaps(route)
}

func drawLawRule(t *rapid.T, kind string) lawRule {
	word := func(dst bool) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			switch rapid.IntRange(0, 5).Draw(t, "sort") {
			case 0:
				return rapid.SampledFrom(lawWords).Draw(t, "word")
			case 1:
				if dst {
					return "autogroup:internet"
				}
				if kind == "grants" {
					return "autogroup:danger-all"
				}
				return "*"
			case 2:
				return rapid.SampledFrom([]string{"*", "autogroup:admin"}).Draw(t, "wide")
			}
			return drawSelector(t, dst)
		})
	}
	r := lawRule{Dst: rapid.SliceOfN(word(true), 1, 2).Draw(t, "dst")}
	if kind != "grants" {
		r.Dst = slices.DeleteFunc(r.Dst, func(s string) bool { return s == "autogroup:self" })
		if len(r.Dst) == 0 {
			r.Dst = []string{"tag:a"}
		}
	}
	if slices.Contains(r.Dst, "autogroup:self") {
		r.Src = []string{rapid.SampledFrom([]string{"autogroup:member", "group:g1", "ann@example.com", "autogroup:admin"}).Draw(t, "person")}
	} else {
		r.Src = rapid.SliceOfN(word(false), 1, 2).Draw(t, "src")
	}
	posture := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"posture:linux", "posture:good", "posture:other", "posture:new", "posture:recent", "posture:unset"}), 1, 2, rapid.ID[string])
	if kind == "deny" { // how deny treats NOT SET has a test of its own
		posture = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"posture:linux", "posture:good", "posture:other", "posture:recent"}), 1, 2, rapid.ID[string])
	}
	switch kind {
	case "enforcement":
		r.Mode, r.Until = "monitor", "2026-04-01"
		return r
	case "grants":
		if rapid.IntRange(0, 3).Draw(t, "auth") == 0 {
			r.Auth = rapid.SampledFrom([]map[string]any{{"age": "1h"}, {"mfa": true}, {"age": "1h", "mfa": true}}).Draw(t, "asks")
		}
		if rapid.IntRange(0, 4).Draw(t, "through") == 0 {
			r.Via = rapid.SliceOfNDistinct(rapid.SampledFrom(tags), 1, 2, rapid.ID[string]).Draw(t, "via")
		}
	}
	if rapid.IntRange(0, 2).Draw(t, "posture") == 0 {
		r.SrcPosture = posture.Draw(t, "srcPosture")
	}
	r.IP = rapid.SliceOfN(rapid.SampledFrom([]string{"*", "443", "80-90", "tcp:443", "icmp:*"}), 1, 2).Draw(t, "ip")
	return r
}

func drawLaw(t *rapid.T) law {
	f := lawFile{document: drawDocument(t)}
	f.ACLs, f.document.Grants = nil, nil
	f.Postures, f.IPSets = lawPostures, map[string][]string{"ipset:some": {"10.2.0.0/16", "100.64.0.2", "fd00:1::/126"}}
	f.AutoApprovers = map[string]any{"routes": map[string][]string{"10.1.0.0/16": {"tag:b"}}, "exitNode": []string{"tag:a"}}
	if rapid.IntRange(0, 4).Draw(t, "session") == 0 {
		f.Session = map[string]string{"maxAge": "12h"}
	}
	for range rapid.IntRange(1, 4).Draw(t, "grants") {
		f.Grants = append(f.Grants, drawLawRule(t, "grants"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "deny") {
		f.Deny = append(f.Deny, drawLawRule(t, "deny"))
	}
	for range rapid.IntRange(0, 1).Draw(t, "enforcement") {
		f.Enforcement = append(f.Enforcement, drawLawRule(t, "enforcement"))
	}
	inv := drawInventory(t)
	inv.SetNow(lawNow)
	for _, id := range slices.Sorted(inv.All()) {
		drawTraits(t, inv, id)
	}
	for _, who := range people {
		if rapid.Bool().Draw(t, "admin") {
			inv.SetRoles(who, "admin")
		}
	}
	return law{f, inv}
}

func drawTraits(t *rapid.T, inv *compile.Memory, id proto.NodeID) {
	n, _ := inv.Node(id)
	if !n.User.IsZero() {
		n.User.AuthTime = lawNow.Add(-rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, time.Hour + time.Second, 13 * time.Hour}).Draw(t, "age"))
		mustPut(inv, n)
	}
	traits := compile.Traits{Facts: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(lawFacts)) {
		values := lawFacts[name]
		if i := rapid.IntRange(-1, len(values)-1).Draw(t, name); i >= 0 {
			traits.Facts[name] = values[i]
		}
	}
	if rapid.IntRange(0, 1).Draw(t, "router") == 0 {
		for _, r := range rapid.SliceOfNDistinct(rapid.SampledFrom(lawRoutes), 0, 3, rapid.ID[string]).Draw(t, "routes") {
			traits.Advertised = append(traits.Advertised, netip.MustParsePrefix(r))
			if rapid.Bool().Draw(t, "approved") {
				traits.Approved = append(traits.Approved, netip.MustParsePrefix(r))
			}
		}
	}
	inv.SetTraits(id, traits)
}

// lets reports whether the view of a node lets it open or accept a connection.
func lets(v compile.View, d proto.Direction, own, other spot, p packet) (allowed, watched bool) {
	if !slices.Contains(v.Peers, other.node.ID) || other.behind && !slices.ContainsFunc(v.Routes[other.node.ID], func(r netip.Prefix) bool {
		return r.Contains(other.addr) && (r.Bits() == 0) == other.exit
	}) {
		return false, false
	}
	holds := func(ps []netip.Prefix, a netip.Addr) bool {
		return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	denied := false
	for _, r := range v.Rules {
		if r.Direction != d || !holds(r.Local, own.addr) || !slices.ContainsFunc(r.Services, func(s proto.Service) bool {
			return s.Proto == p.protocol && s.First <= p.port && p.port <= s.Last
		}) {
			continue
		}
		picked := holds(r.Peers.Prefixes, other.addr)
		for _, s := range v.Sets {
			picked = picked || !other.behind && slices.Contains(r.Peers.Sets, s.Name) && slices.Contains(s.Members, other.node.ID)
		}
		if !picked {
			continue
		}
		switch r.Action {
		case proto.Deny:
			denied = true
		case proto.Allow:
			allowed = true
		case proto.Monitor:
			watched = true
		}
	}
	if denied {
		return false, false
	}
	return allowed || watched, watched && !allowed
}

func TestCompilerKeepsTheLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLaw(t)
		text := fmt.Sprintf("%s\n%s", l.file.bytes(), l.nodes())
		prog := compile.New(parseAt(t, l.file.bytes()), testMesh)
		b := prog.On(l.inv)
		all := l.spots()
		views, ties := map[proto.NodeID]compile.View{}, map[proto.NodeID]map[proto.NodeID]bool{}
		for id := range l.inv.All() {
			views[id], ties[id] = b.For(id), map[proto.NodeID]bool{}
		}
		via := slices.ContainsFunc(l.file.Grants, func(r lawRule) bool { return len(r.Via) > 0 })
		type question struct {
			at       proto.NodeID
			src, dst netip.Addr
			p        packet
		}
		answers := map[question][2]bool{}
		for _, from := range all {
			for _, to := range all {
				if from.node.ID == to.node.ID || from.addr.Is4() != to.addr.Is4() {
					continue
				}
				for kind, rules := range map[string][]lawRule{"grants": l.file.Grants, "enforcement": l.file.Enforcement} {
					for _, r := range rules {
						if l.about(kind, r, from, to, nil) {
							ties[from.node.ID][to.node.ID], ties[to.node.ID][from.node.ID] = true, true
						}
					}
				}
				for _, p := range lawPackets {
					allowed, watched := l.verdict(from, to, p)
					for _, at := range []proto.NodeID{from.node.ID, to.node.ID} {
						q := question{at, from.addr, to.addr, p}
						was := answers[q]
						answers[q] = [2]bool{was[0] || allowed, was[1] || allowed && !watched}
					}
					what := fmt.Sprintf("%s (%v) -> %s (%v) %v", from.addr, from.node.Name, to.addr, to.node.Name, p)
					if a, w := lets(views[to.node.ID], proto.In, to, from, p); a != allowed || w != watched {
						t.Fatalf("into %s: allowed %v watched %v, want %v %v\n%s", what, a, w, allowed, watched, text)
					}
					a, w := lets(views[from.node.ID], proto.Out, from, to, p)
					if a != allowed || w != watched {
						if via && (a || !allowed) && to.behind {
							continue // which router a rule goes through is for the router to judge
						}
						t.Fatalf("out of %s: allowed %v watched %v, want %v %v\n%s", what, a, w, allowed, watched, text)
					}
				}
			}
		}
		for q, want := range answers {
			v := b.Decide(q.at, q.src, q.dst, q.p.protocol, q.p.port)
			both := bothEnds(all, q.at, q.src, q.dst)
			// Two ends behind one node talk without the mesh; the node may refuse that, but must never let more pass.
			refused := both && !v.Allowed
			if v.Allowed != want[0] && !refused || v.Allowed && (v.Mode == compile.Enforce) != want[1] && !both {
				t.Fatalf("at %v %s -> %s %v: %+v, want %v\n%s", q.at, q.src, q.dst, q.p, v, want, text)
			}
		}
		for id := range l.inv.All() {
			for other := range l.inv.All() {
				if got := slices.Contains(views[id].Peers, other); got != ties[id][other] {
					t.Fatalf("%v has %v as a peer: %v, want %v\n%s", id, other, got, ties[id][other], text)
				}
			}
			nm := proto.Netmap{
				Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: id,
				Sets: views[id].Sets, Rules: views[id].Rules, Withheld: views[id].Withheld,
			}
			for _, p := range views[id].Peers {
				nm.Peers = append(nm.Peers, &proto.Peer{ID: p, Certificate: []byte("certificate"), Routes: views[id].Routes[p]})
			}
			if err := nm.Validate(); err != nil {
				t.Fatalf("the view of %s makes no netmap: %v\n%s", id, err, text)
			}
		}
	})
}

// bothEnds reports whether a node serves both addresses of a connection, so that it may be either end.
func bothEnds(all []spot, at proto.NodeID, src, dst netip.Addr) bool {
	has := func(a netip.Addr) bool {
		return slices.ContainsFunc(all, func(s spot) bool { return s.node.ID == at && s.addr == a })
	}
	return has(src) && has(dst)
}

func parseAt(t interface{ Fatalf(string, ...any) }, text []byte) *acl.Policy {
	p, diags := acl.Check("policy", text, lawNow)
	if p == nil {
		t.Fatalf("the test made a bad policy: %s\n%s", diags.Format("policy"), text)
	}
	return p
}

func TestAffectedCoversEveryChangeOfTheLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawLaw(t)
		prog := compile.New(parseAt(t, l.file.bytes()), testMesh)
		after := l.inv.Clone()
		i := rapid.IntRange(0, len(addrs4)-1).Draw(t, "changed")
		id := proto.NodeID(i + 1)
		switch rapid.IntRange(0, 2).Draw(t, "how") {
		case 0:
			mustPut(after, drawNode(t, i))
			drawTraits(t, after, id)
		case 1:
			if _, ok := after.Node(id); ok {
				drawTraits(t, after, id)
			}
		case 2:
			if n, ok := after.Node(id); ok && !n.User.IsZero() {
				after.SetRoles(n.User.Name, rapid.SampledFrom([]string{"admin", "owner"}).Draw(t, "role"))
			}
		}
		affected := prog.Affected(l.inv, after, id)
		for i := range addrs4 {
			other := proto.NodeID(i + 1)
			if slices.Contains(affected, other) {
				continue
			}
			if was, is := prog.For(l.inv, other), prog.For(after, other); !reflect.DeepEqual(was, is) {
				diff := cmp.Diff(was, is, addrCmp)
				t.Fatalf("the view of %v changed with %v and is not among %v: %s\n%s", other, id, affected, diff, l.file.bytes())
			}
		}
	})
}

func TestChangedCoversEveryChangeOfThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, other := drawLaw(t), drawLaw(t)
		next := l.file
		if rapid.Bool().Draw(t, "groups") {
			next.Groups = other.file.Groups
		}
		next.Grants = slices.Clone(l.file.Grants)
		next.Grants[0] = other.file.Grants[0]
		if rapid.Bool().Draw(t, "deny") {
			next.Deny = other.file.Deny
		}
		if rapid.Bool().Draw(t, "approvers") {
			next.AutoApprovers = nil
		}
		before := compile.New(parseAt(t, l.file.bytes()), testMesh).On(l.inv)
		after := compile.New(parseAt(t, next.bytes()), testMesh).On(l.inv)
		changed := compile.Changed(before, after)
		for id := range l.inv.All() {
			if slices.Contains(changed, id) {
				continue
			}
			if was, is := before.For(id), after.For(id); !reflect.DeepEqual(was, is) {
				diff := cmp.Diff(was, is, addrCmp)
				t.Fatalf("the view of %v changed and is not among %v: %s\n%s\n%s", id, changed, diff, l.file.bytes(), next.bytes())
			}
		}
	})
}
