package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// benchRuleset has n peers and n rules of which each peer is covered by all: the widest services there can be.
func benchRuleset(peers, rules int) Ruleset {
	r := testRuleset(peers)
	for i := range rules {
		port := uint16(1000 + 3*i)
		for _, d := range []proto.Direction{proto.In, proto.Out} {
			r.Rules = append(r.Rules, proto.Rule{
				Origin: proto.Origin{Path: fmt.Sprintf("grants[%d]", i), Line: i + 1}, Direction: d,
				Peers: proto.Selector{Sets: []string{"all"}}, Local: ownPrefixes(r.Self),
				Services: []proto.Service{{Proto: proto.ProtoUDP, First: port, Last: port}, {Proto: proto.ProtoTCP, First: port, Last: port}},
			})
		}
	}
	return r
}

func benchFilter(b *testing.B, peers, rules int) (*Filter, Ruleset) {
	b.Helper()
	r := benchRuleset(peers, rules)
	p, err := Compile(r)
	if err != nil {
		b.Fatal(err)
	}
	f := New(Config{MaxFlows: 400000, PerPeer: 400000})
	f.Install(p)
	return f, r
}

func BenchmarkEstablished(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, flows := range []int{10, 100000} {
			b.Run(fmt.Sprintf("rules=%d/flows=%d", rules, flows), func(b *testing.B) {
				f, r := benchFilter(b, 100, rules)
				pkt := udp(r.Self.Addrs.V4, 0, r.Peers[0].Addrs.V4, 0, 64)
				aim := func(i int) {
					copy(pkt[16:], r.Peers[i%len(r.Peers)].Addrs.V4.AsSlice())
					binary.BigEndian.PutUint16(pkt[20:], uint16(1024+i/len(r.Peers)))
					binary.BigEndian.PutUint16(pkt[22:], uint16(1000+3*(i%10)))
				}
				for i := range flows {
					aim(i)
					if v := f.Out(pkt); !v.Pass {
						b.Fatal(v.Reason)
					}
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					aim(i)
					if !f.Out(pkt).Pass {
						b.Fatal("dropped")
					}
					if i++; i == flows {
						i = 0
					}
				}
			})
		}
	}
}

func BenchmarkEstablishedTCP(b *testing.B) {
	f, r := benchFilter(b, 10, 10)
	out := packet.Segment{
		Src: packet.AddrOf(r.Self.Addrs.V4), Dst: packet.AddrOf(r.Peers[0].Addrs.V4), SrcPort: 40000, DstPort: 1000,
		Seq: 1, Flags: packet.SYN,
	}
	if v := f.Out(packet.AppendSegment(nil, out)); !v.Pass {
		b.Fatal(v.Reason)
	}
	out.Seq, out.Flags = 2, packet.ACK
	pkt := packet.AppendSegment(nil, out)
	b.ReportAllocs()
	for b.Loop() {
		if !f.Out(pkt).Pass {
			b.Fatal("dropped")
		}
	}
}

// BenchmarkBatch is 64 packets of one flow a call; the figure is for one packet.
func BenchmarkBatch(b *testing.B) {
	const size = 64
	f, r := benchFilter(b, 10, 10)
	bufs, sizes, verdicts := make([][]byte, size), make([]int, size), make([]Verdict, size)
	for i := range bufs {
		bufs[i] = udp(r.Self.Addrs.V4, 40000, r.Peers[0].Addrs.V4, 1000, 1372)
		sizes[i] = len(bufs[i])
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n%size == 0 {
			f.OutBatch(bufs, sizes, 0, verdicts)
		}
		if !verdicts[n%size].Pass {
			b.Fatal("dropped")
		}
		n++
	}
}

// BenchmarkMemory is one dependent read from as much memory as so many flows take: the floor under the figures with many
// flows, which wait for two or three such reads.
func BenchmarkMemory(b *testing.B) {
	for _, flows := range []int{10, 100000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			table, order := make([]flow, flows), rand.Perm(flows)
			for i, n := range order {
				table[n].tag = uint32(order[(i+1)%flows])
			}
			at := uint32(0)
			for b.Loop() {
				at = table[at].tag
			}
		})
	}
}

func BenchmarkNewFlow(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, flows := range []int{1000, 50000} {
			b.Run(fmt.Sprintf("rules=%d/flows=%d", rules, flows), func(b *testing.B) {
				f, r := benchFilter(b, 100, rules)
				pkt := udp(r.Self.Addrs.V4, 0, r.Peers[0].Addrs.V4, 1000, 64)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if i == flows {
						b.StopTimer()
						empty(f)
						i = 0
						b.StartTimer()
					}
					binary.BigEndian.PutUint16(pkt[20:], uint16(i))
					binary.BigEndian.PutUint16(pkt[22:], uint16(1000+3*(i%10)))
					if v := f.Out(pkt); !v.Pass {
						b.Fatal(v.Reason)
					}
					i++
				}
			})
		}
	}
}

// empty ends all flows, and drains their records.
func empty(f *Filter) {
	for i := range f.shards {
		s := &f.shards[i]
		for n := range s.used {
			if fl := s.at(n); fl.state != vacant {
				s.end(fl, Idle, 0)
			}
		}
	}
	f.Drain(func(Record) {})
}

func BenchmarkDenied(b *testing.B) {
	for _, rules := range []int{10, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			f, r := benchFilter(b, 100, rules)
			pkt := udp(r.Peers[0].Addrs.V4, 4000, r.Self.Addrs.V4, 999, 64)
			b.ReportAllocs()
			for b.Loop() {
				if f.In(pkt).Pass {
					b.Fatal("passed")
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range [][2]int{{100, 100}, {1000, 1000}, {10000, 1000}} {
		b.Run(fmt.Sprintf("peers=%d/rules=%d", n[0], n[1]), func(b *testing.B) {
			r := benchRuleset(n[0], n[1])
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Compile(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
