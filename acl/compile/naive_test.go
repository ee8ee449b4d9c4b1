package compile_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// The naive evaluator reads a policy as a person reads the description of the language: it goes through all rules, sources and
// destinations, and checks whether each covers the packet. It shares nothing with the compiler.

type document struct {
	Groups    map[string][]string `json:"groups,omitempty"`
	Hosts     map[string]string   `json:"hosts,omitempty"`
	TagOwners map[string][]string `json:"tagOwners,omitempty"`
	ACLs      []aclRule           `json:"acls,omitempty"`
	Grants    []grantRule         `json:"grants,omitempty"`
	Tests     []policyTest        `json:"tests,omitempty"`
}

type aclRule struct {
	Action string   `json:"action"`
	Proto  string   `json:"proto,omitempty"`
	Src    []string `json:"src"`
	Dst    []string `json:"dst"`
}

type grantRule struct {
	Src []string `json:"src"`
	Dst []string `json:"dst"`
	IP  []string `json:"ip"`
}

type policyTest struct {
	Src    string   `json:"src"`
	Proto  string   `json:"proto,omitempty"`
	Accept []string `json:"accept,omitempty"`
	Deny   []string `json:"deny,omitempty"`
}

func (d document) text() []byte {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		panic(err)
	}
	return b
}

// endpoint is a node at one of its addresses.
type endpoint struct {
	node proto.Identity
	addr netip.Addr
}

type naive struct {
	doc  document
	mesh proto.Mesh
}

// selects reports whether a selector covers an endpoint; other is the opposite side, for autogroup:self.
func (n naive) selects(sel string, at, other endpoint) bool {
	tagged := len(at.node.Tags) > 0
	person := at.node.User.Name
	if tagged {
		person = ""
	}
	if h, ok := n.doc.Hosts[sel]; ok {
		sel = h
	}
	if p, err := netip.ParsePrefix(sel); err == nil {
		return p.Contains(at.addr)
	}
	if a, err := netip.ParseAddr(sel); err == nil {
		return a == at.addr
	}
	switch {
	case sel == "*":
		return n.mesh.Contains(at.addr) && !netip.MustParsePrefix("100.115.92.0/23").Contains(at.addr)
	case strings.HasPrefix(sel, "user:*@"):
		return person != "" && strings.HasSuffix(person, sel[len("user:*"):])
	case strings.Contains(sel, "@"):
		return person != "" && (person == sel || person+"@" == sel)
	case strings.HasPrefix(sel, "group:"):
		return slices.ContainsFunc(n.doc.Groups[sel], func(u string) bool { return n.selects(u, at, other) })
	case strings.HasPrefix(sel, "tag:"):
		return slices.Contains(at.node.Tags, sel)
	case sel == "autogroup:member":
		return person != ""
	case sel == "autogroup:tagged":
		return tagged
	case sel == "autogroup:self":
		return person != "" && len(other.node.Tags) == 0 && other.node.User.Name == person
	}
	panic("the test made the selector " + sel)
}

// allows reports whether a connection from one endpoint to another is permitted.
func (n naive) allows(from, to endpoint, protocol uint8, port uint16) bool {
	if from.node.ID == to.node.ID || from.addr.Is4() != to.addr.Is4() {
		return false
	}
	anySrc := func(list []string, dst string) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			if dst == "autogroup:self" && s == "*" {
				return true // whatever the address: self is about people
			}
			return n.selects(s, from, to)
		})
	}
	for _, r := range n.doc.ACLs {
		for _, d := range r.Dst {
			i := strings.LastIndex(d, ":")
			if n.selects(d[:i], to, from) && anySrc(r.Src, d[:i]) && open(r.Proto, d[i+1:], protocol, port) {
				return true
			}
		}
	}
	for _, r := range n.doc.Grants {
		for _, d := range r.Dst {
			if !n.selects(d, to, from) || !anySrc(r.Src, d) {
				continue
			}
			for _, ip := range r.IP {
				name, ports, ok := strings.Cut(ip, ":")
				if !ok {
					name, ports = "", ip
				}
				if open(name, ports, protocol, port) {
					return true
				}
			}
		}
	}
	return false
}

// open reports whether a protocol (or the usual ones) with ports covers a packet.
func open(name, ports string, protocol uint8, port uint16) bool {
	numbers := map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "gre": 47}
	switch {
	case name == "" && !slices.Contains([]uint8{6, 17, 1, 58}, protocol):
		return false
	case name != "":
		if n, ok := numbers[name]; ok && n != protocol || !ok && name != strconv.Itoa(int(protocol)) {
			return false
		}
	}
	if ports == "*" || protocol == 1 || protocol == 58 || protocol == 47 {
		return true
	}
	for part := range strings.SplitSeq(ports, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, _ := strconv.Atoi(first)
		b, _ := strconv.Atoi(last)
		if a <= int(port) && int(port) <= b {
			return true
		}
	}
	return false
}

// What random policies and inventories are made of.
var (
	people = []string{"ann@example.com", "bob@example.com", "cat@other.org", "dan"}
	tags   = []string{"tag:a", "tag:b", "tag:c"}
	addrs4 = []string{"100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.7.1", "100.115.92.9", "100.127.255.254"}
	addrs6 = []string{"fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:1::7:1", "fd00:1::9", "fd00:1::ffff"}

	testMesh = proto.Mesh{
		ID: "m00000000000000000000000000", Domain: "mesh.internal",
		V4: netip.MustParsePrefix("100.64.0.0/10"), V6: netip.MustParsePrefix("fd00:1::/48"),
	}
	literals = []string{
		"100.64.0.1", "100.64.0.0/30", "100.64.0.0/16", "100.115.92.0/24", "10.1.0.0/16", "fd00:1::2", "fd00:1::/112", "0.0.0.0/1",
		"web", "net", "six",
	}
	hosts = map[string]string{"web": "100.64.0.2", "net": "100.64.0.0/29", "six": "fd00:1::3"}
)

func drawSelector(t *rapid.T, dst bool) string {
	kinds := []string{"*", "autogroup:member", "autogroup:tagged", "group:g1", "group:g2", "group:none", "user", "user", "tag", "tag", "literal"}
	if dst {
		kinds = append(kinds, "autogroup:self")
	} else {
		kinds = append(kinds, "user:*@example.com")
	}
	switch k := rapid.SampledFrom(kinds).Draw(t, "kind"); k {
	case "user":
		return userText(rapid.SampledFrom(people).Draw(t, "user"))
	case "tag":
		return rapid.SampledFrom(tags).Draw(t, "tag")
	case "literal":
		return rapid.SampledFrom(literals).Draw(t, "literal")
	default:
		return k
	}
}

func userText(login string) string {
	if strings.Contains(login, "@") {
		return login
	}
	return login + "@"
}

// drawSources draws sources that are valid with the destinations; * with autogroup:self only in acls.
func drawSources(t *rapid.T, dst []string, acl bool) []string {
	self := slices.ContainsFunc(dst, func(d string) bool { return strings.HasPrefix(d, "autogroup:self") })
	src := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawSelector(t, false) }), 1, 3).Draw(t, "src")
	for i, s := range src {
		if self && !(acl && s == "*") && !strings.Contains(s, "@") && !strings.HasPrefix(s, "group:") && s != "autogroup:member" {
			src[i] = "autogroup:member"
		}
	}
	return src
}

func drawDocument(t *rapid.T) document {
	d := document{Hosts: hosts, TagOwners: map[string][]string{}, Groups: map[string][]string{"group:none": {}}}
	for _, tag := range tags {
		d.TagOwners[tag] = []string{"group:g1"}
	}
	for _, g := range []string{"group:g1", "group:g2"} {
		members := rapid.SliceOfN(rapid.SampledFrom(people), 1, 3).Draw(t, g)
		for i := range members {
			members[i] = userText(members[i])
		}
		d.Groups[g] = members
	}
	dst := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawSelector(t, true) }), 1, 3)
	for range rapid.IntRange(0, 3).Draw(t, "acls") {
		r := aclRule{Action: "accept", Proto: rapid.SampledFrom([]string{"", "", "tcp", "udp", "icmp", "47", "sctp"}).Draw(t, "proto")}
		ports := []string{"*", "22", "80,443", "1-100", "443,400-500"}
		if r.Proto == "icmp" || r.Proto == "47" {
			ports = []string{"*"}
		}
		for _, s := range dst.Draw(t, "dst") {
			r.Dst = append(r.Dst, s+":"+rapid.SampledFrom(ports).Draw(t, "ports"))
		}
		r.Src = drawSources(t, r.Dst, true)
		d.ACLs = append(d.ACLs, r)
	}
	for range rapid.IntRange(0, 3).Draw(t, "grants") {
		r := grantRule{Dst: dst.Draw(t, "dst")}
		r.Src = drawSources(t, r.Dst, false)
		r.IP = rapid.SliceOfN(rapid.SampledFrom([]string{"*", "443", "80-90", "tcp:443", "udp:53", "icmp:*", "icmpv6:*", "132:22"}), 1, 2).Draw(t, "ip")
		d.Grants = append(d.Grants, r)
	}
	return d
}

// drawNode draws node number i, which determines its addresses.
func drawNode(t *rapid.T, i int) proto.Identity {
	n := proto.Identity{ID: proto.NodeID(i + 1), Name: fmt.Sprintf("n%d", i), Addrs: proto.Addrs{
		V4: netip.MustParseAddr(addrs4[i]), V6: netip.MustParseAddr(addrs6[i]),
	}}
	switch rapid.IntRange(0, 4).Draw(t, "identity") {
	case 0:
	case 1, 2:
		name := rapid.SampledFrom(people).Draw(t, "user")
		n.User = proto.User{Issuer: "test", Subject: name, Name: name}
	default:
		n.Tags = rapid.SliceOfNDistinct(rapid.SampledFrom(tags), 1, 2, rapid.ID[string]).Draw(t, "tags")
		slices.Sort(n.Tags)
	}
	return n
}

func drawInventory(t *rapid.T) *compile.Memory {
	inv := &compile.Memory{}
	for i := range addrs4 {
		if rapid.IntRange(0, 4).Draw(t, "there") > 0 {
			mustPut(inv, drawNode(t, i))
		}
	}
	return inv
}

func mustPut(inv *compile.Memory, n proto.Identity) {
	if err := inv.Put(n); err != nil {
		panic(err)
	}
}

type packet struct {
	protocol uint8
	port     uint16
}

var packets = []packet{
	{6, 22}, {6, 80}, {6, 443}, {6, 450}, {6, 1}, {6, 65535}, {17, 53}, {17, 22}, {1, 0}, {58, 0}, {47, 0}, {132, 22}, {132, 443},
}
