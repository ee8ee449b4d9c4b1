package compile_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// The mesh of a company: 10,000 nodes, 60 % of them people's, in 100 groups, and 100 tags, with 1,000 grants.
const (
	benchNodes  = 10_000
	benchGroups = 100
	benchGrants = 1_000
)

func benchPolicy() []byte {
	var b strings.Builder
	b.WriteString("{\n\"groups\": {\n")
	for g := range benchGroups {
		fmt.Fprintf(&b, "  \"group:g%d\": [", g)
		for u := g; u < benchNodes*6/10; u += benchGroups {
			fmt.Fprintf(&b, "\"u%d@example.com\", ", u)
		}
		b.WriteString("],\n")
	}
	b.WriteString("},\n\"tagOwners\": {\n")
	for t := range benchGroups {
		fmt.Fprintf(&b, "  \"tag:t%d\": [\"group:g%d\"],\n", t, t)
	}
	b.WriteString("},\n\"grants\": [\n")
	for i := range benchGrants - 1 {
		fmt.Fprintf(&b, "  {\"src\": [\"group:g%d\", \"tag:t%d\"], \"dst\": [\"tag:t%d\"], \"ip\": [\"tcp:%d\", \"icmp:*\"]}, // rule %d\n",
			i%benchGroups, (i*7)%benchGroups, (i*13)%benchGroups, 1000+i, i)
	}
	b.WriteString("  {\"src\": [\"autogroup:member\"], \"dst\": [\"autogroup:self\"], \"ip\": [\"*\"]},\n]}\n")
	return []byte(b.String())
}

func benchInventory() *compile.Memory {
	inv := &compile.Memory{}
	for i := range benchNodes {
		mustPut(inv, benchNode(i))
	}
	return inv
}

func benchNode(i int) proto.Identity {
	n := proto.Identity{ID: proto.NodeID(i + 1), Name: fmt.Sprintf("n%d", i), Addrs: proto.Addrs{
		V4: netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}),
		V6: netip.MustParseAddr(fmt.Sprintf("fd00:1::%x", i+1)),
	}}
	if i < benchNodes*6/10 {
		name := fmt.Sprintf("u%d@example.com", i)
		n.User = proto.User{Issuer: "test", Subject: name, Name: name}
	} else {
		n.Tags = []string{fmt.Sprintf("tag:t%d", i%benchGroups)}
	}
	return n
}

func BenchmarkNew(b *testing.B) {
	p := mustParse(b, benchPolicy())
	for b.Loop() {
		compile.New(p, testMesh)
	}
}

// BenchmarkFor computes the View of one node alone: a person's and a server's.
func BenchmarkFor(b *testing.B) {
	prog, inv := compile.New(mustParse(b, benchPolicy()), testMesh), benchInventory()
	for name, id := range map[string]proto.NodeID{"user": 1, "tag": benchNodes} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				prog.For(inv, id)
			}
		})
	}
}

// BenchmarkForAll computes the View of every node after a change of policy, one per iteration.
func BenchmarkForAll(b *testing.B) {
	prog, inv := compile.New(mustParse(b, benchPolicy()), testMesh), benchInventory()
	bound, i := prog.On(inv), 0
	b.ReportAllocs()
	for b.Loop() {
		bound.For(proto.NodeID(i%benchNodes + 1))
		i++
	}
}

// BenchmarkAffected measures the cost of a joining node.
func BenchmarkAffected(b *testing.B) {
	prog, after := compile.New(mustParse(b, benchPolicy()), testMesh), benchInventory()
	before := after.Clone()
	before.Remove(1)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n = len(prog.Affected(before, after, 1))
	}
	b.ReportMetric(float64(n), "nodes")
}

func BenchmarkDecide(b *testing.B) {
	prog, inv := compile.New(mustParse(b, benchPolicy()), testMesh), benchInventory()
	bound, from, i := prog.On(inv), benchNode(0), 0
	var to []proto.Identity
	for n := range 100 {
		to = append(to, benchNode(benchNodes-1-n))
	}
	b.ReportAllocs()
	for b.Loop() {
		n := &to[i%len(to)]
		bound.Decide(n.ID, from.Addrs.V4, n.Addrs.V4, proto.ProtoTCP, 1000)
		i++
	}
}

func BenchmarkRunTests(b *testing.B) {
	src := benchPolicy()
	src = append(src[:len(src)-2], "\"tests\": [{\"src\": \"autogroup:member\", \"deny\": [\"autogroup:tagged:22\", \"*:23\"]}]}\n"...)
	src = []byte(strings.Replace(string(src), "]\"tests\"", "],\"tests\"", 1))
	prog, inv := compile.New(mustParse(b, src), testMesh), benchInventory()
	for b.Loop() {
		if f := compile.RunTests(prog, inv); len(f) > 0 {
			b.Fatal(f[0].Diagnostic())
		}
	}
}

func TestBenchPolicyIsGood(t *testing.T) {
	if p, diags := acl.Check("bench", benchPolicy(), time.Time{}); p == nil {
		t.Fatal(diags.Format("bench"))
	}
}

// BenchmarkChanged measures finding the nodes that are affected by a change of one rule, among 10,000.
func BenchmarkChanged(b *testing.B) {
	inv := benchInventory()
	before := compile.New(mustParse(b, benchPolicy()), testMesh)
	after := compile.New(mustParse(b, []byte(strings.Replace(string(benchPolicy()), "tcp:1500", "tcp:99", 1))), testMesh)
	n := 0
	for b.Loop() {
		n = len(compile.Changed(before.On(inv), after.On(inv)))
	}
	b.ReportMetric(float64(n), "nodes")
}
