package compile_test

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tailscale/hujson"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// capturedCase holds policies and connections of a production system; see testdata/headscale/NOTICE.
type capturedCase struct {
	ID, Policy string
	Users      []struct{ Name, Email string }
	Nodes      []struct {
		Name, IPv4, IPv6, User     string
		Tags, Advertised, Approved []string
	}
	Expect struct {
		Accept bool
		Error  string
		Peers  map[string][]string
	}
}

type capturedProbe struct {
	Case, At, Proto string
	Src             string `json:"src_ip"`
	Dst             string `json:"dst_ip"`
	Port            uint16
	Allowed         bool
	Strict          *bool `json:"allowed_strict"`
}

func readCaptured[T any](t *testing.T, name string) []T {
	t.Helper()
	f, err := os.Open("testdata/headscale/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []T
	for d := json.NewDecoder(bufio.NewReader(z)); d.More(); {
		var x T
		if err := d.Decode(&x); err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
	return out
}

// captured maps the names of a case to nodes and back.
type captured struct {
	ids   map[string]proto.NodeID
	names map[proto.NodeID]string
}

func (c capturedCase) inventory(t *testing.T) (*compile.Memory, proto.Mesh, captured) {
	t.Helper()
	mesh := proto.Mesh{ID: testMesh.ID, Domain: testMesh.Domain, V4: netip.MustParsePrefix("100.64.0.0/10")}
	inv, made := &compile.Memory{}, captured{ids: map[string]proto.NodeID{}, names: map[proto.NodeID]string{}}
	login := map[string]string{}
	for _, u := range c.Users {
		login[u.Name] = cmp.Or(u.Email, u.Name)
	}
	prefixes := func(list []string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for i, n := range c.Nodes {
		id := proto.Identity{ID: proto.NodeID(i + 1), Name: n.Name, Tags: slices.Sorted(slices.Values(n.Tags)), Addrs: proto.Addrs{
			V4: netip.MustParseAddr(n.IPv4), V6: netip.MustParseAddr(n.IPv6),
		}}
		if n.User != "" {
			id.User = proto.User{Issuer: "test", Subject: n.User, Name: login[n.User]}
		}
		mesh.V6 = netip.PrefixFrom(id.Addrs.V6, 48).Masked()
		mustPut(inv, id)
		inv.SetTraits(id.ID, compile.Traits{Advertised: prefixes(n.Advertised), Approved: prefixes(n.Approved)})
		made.ids[n.Name], made.names[id.ID] = id.ID, n.Name
	}
	return inv, mesh, made
}

// permitsAnything reports whether a policy has rules at all: one without them allows everything there and nothing here.
func permitsAnything(policy string) bool {
	standard, err := hujson.Standardize([]byte(policy))
	if err != nil {
		return true
	}
	var p struct{ ACLs, Grants []json.RawMessage }
	return json.Unmarshal(standard, &p) != nil || p.ACLs != nil || p.Grants != nil
}

func TestCapturedConnections(t *testing.T) {
	probes := map[string][]capturedProbe{}
	for _, p := range readCaptured[capturedProbe](t, "probes.jsonl.gz") {
		probes[p.Case] = append(probes[p.Case], p)
	}
	protocols := map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "gre": 47}
	checked := 0
	for _, c := range readCaptured[capturedCase](t, "cases.jsonl.gz") {
		t.Run(c.ID, func(t *testing.T) {
			inv, mesh, made := c.inventory(t)
			policy, diags := acl.Check("policy", []byte(c.Policy), time.Time{})
			accepted := policy != nil
			var b *compile.Bound
			if accepted {
				prog := compile.New(policy, mesh)
				b = prog.On(inv)
				accepted = len(compile.RunTests(prog, inv)) == 0 && len(compile.RunSSHTests(prog, inv)) == 0
				for _, f := range compile.RunTests(prog, inv) {
					diags = append(diags, f.Diagnostic())
				}
				for _, f := range compile.RunSSHTests(prog, inv) {
					diags = append(diags, f.Diagnostic())
				}
			}
			if accepted != c.Expect.Accept {
				t.Errorf("accepted: %v, want %v (%s)\n%s\n%s", accepted, c.Expect.Accept, c.Expect.Error, diags.Format("policy"), c.Policy)
			}
			if b == nil || !permitsAnything(c.Policy) {
				return
			}
			for _, p := range probes[c.ID] {
				protocol, known := protocols[p.Proto]
				if !known {
					n, err := strconv.ParseUint(p.Proto, 10, 8)
					if err != nil {
						t.Fatal(err)
					}
					protocol = uint8(n)
				}
				want := p.Allowed
				if p.Strict != nil {
					want = *p.Strict
				}
				v := b.Decide(made.ids[p.At], netip.MustParseAddr(p.Src), netip.MustParseAddr(p.Dst), protocol, p.Port)
				if v.Allowed != want || v.Allowed != (v.Rule != nil) {
					t.Errorf("%+v: %v by %v, want %v\n%s", p, v.Allowed, v.Rule, want, c.Policy)
				}
				checked++
			}
			for name, want := range c.Expect.Peers {
				var got []string
				for _, id := range b.For(made.ids[name]).Peers {
					got = append(got, made.names[id])
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("peers of %s: %v, want %v\n%s", name, got, want, c.Policy)
				}
			}
		})
	}
	t.Logf("%d connections", checked)
}
