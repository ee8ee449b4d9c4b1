package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// benchRuleset has n peers and n rules, each of which covers all peers: the largest services possible.
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

// benchPackets returns UDP packets of as many flows, at most sixty thousand with each peer, in random order. They are adjacent
// in memory, one per cache line, so that reading them costs next to nothing.
func benchPackets(r Ruleset, flows int) [][]byte {
	const line = 64
	slab, pkts := make([]byte, flows*line), make([][]byte, flows)
	for i, n := range rand.Perm(flows) {
		pkt := udp(r.Self.Addrs.V4, uint16(1024+n/len(r.Peers)), r.Peers[n%len(r.Peers)].Addrs.V4, uint16(1000+3*(n%10)), line-28)
		pkts[i] = slab[i*line:][:copy(slab[i*line:], pkt)]
	}
	return pkts
}

// BenchmarkEstablished judges one packet per call, each of a different flow than the one before.
func BenchmarkEstablished(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, flows := range []int{10, 100000} {
			b.Run(fmt.Sprintf("rules=%d/flows=%d", rules, flows), func(b *testing.B) {
				f, r := benchFilter(b, 100, rules)
				pkts := benchPackets(r, flows)
				for _, i := range rand.Perm(flows) { // the table is in a different order from the packets
					if v := f.Out(pkts[i]); !v.Pass {
						b.Fatal(v.Reason)
					}
				}
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if !f.Out(pkts[i]).Pass {
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

// BenchmarkAlone judges one packet per call, all of one flow.
func BenchmarkAlone(b *testing.B) {
	for _, c := range []struct {
		name  string
		addrs func(proto.Identity) netip.Addr
		pkt   func(src, dst netip.Addr, n int) []byte
	}{
		{"tcp4", v4Of, func(src, dst netip.Addr, n int) []byte {
			return segment(src, 40000, dst, 1000, []uint8{syn, ack}[min(n, 1)], uint32(1+1400*n), 7, 1400*min(n, 1))
		}},
		{"tcp6", v6Of, func(src, dst netip.Addr, n int) []byte {
			return segment(src, 40000, dst, 1000, []uint8{syn, ack}[min(n, 1)], uint32(1+1400*n), 7, 1400*min(n, 1))
		}},
		{"udp4", v4Of, func(src, dst netip.Addr, _ int) []byte { return udp(src, 40000, dst, 1000, 64) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			f, r := benchFilter(b, 10, 10)
			var pkts [8][]byte
			for i := range pkts {
				pkts[i] = c.pkt(c.addrs(r.Self), c.addrs(r.Peers[0]), i)
				if v := f.Out(pkts[i]); !v.Pass {
					b.Fatal(v.Reason)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !f.Out(pkts[1+i%4]).Pass {
					b.Fatal("dropped")
				}
				i++
			}
		})
	}
}

func v4Of(id proto.Identity) netip.Addr { return id.Addrs.V4 }
func v6Of(id proto.Identity) netip.Addr { return id.Addrs.V6 }

// BenchmarkBatch judges 64 packets of one flow per call, outbound and inbound; the result is per packet.
func BenchmarkBatch(b *testing.B) {
	const size = 64
	for _, c := range []struct {
		name string
		d    proto.Direction
		pkt  func(src, dst netip.Addr, n int) []byte
	}{
		{"udp4 out", proto.Out, func(src, dst netip.Addr, _ int) []byte { return udp(src, 40000, dst, 1000, 1372) }},
		{"udp4 in", proto.In, func(src, dst netip.Addr, _ int) []byte { return udp(src, 40000, dst, 1000, 1372) }},
		{"tcp4 out", proto.Out, func(src, dst netip.Addr, n int) []byte {
			return segment(src, 40000, dst, 1000, ack, uint32(2+1360*n), 7, 1360)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			f, r := benchFilter(b, 10, 10)
			src, dst := r.Self.Addrs.V4, r.Peers[0].Addrs.V4
			if c.d == proto.In {
				src, dst = dst, src
			}
			f.Out(tcp(src, 40000, dst, 1000, syn))
			bufs, sizes, verdicts := make([][]byte, size), make([]int, size), make([]Verdict, size)
			for i := range bufs {
				bufs[i] = c.pkt(src, dst, i)
				sizes[i] = len(bufs[i])
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += size {
				if c.d == proto.In {
					f.InBatch(r.Peers[0].ID, bufs, 0, verdicts)
				} else {
					f.OutBatch(bufs, sizes, 0, verdicts)
				}
				if !verdicts[0].Pass || !verdicts[size-1].Pass {
					b.Fatal("dropped")
				}
			}
		})
	}
}

// BenchmarkMemory measures one dependent read from as much memory as the flows take: a lower bound for the benchmarks with many
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

// BenchmarkNewFlow judges the first packet of a flow, to any port that there are rules for. The time for emptying the table is
// subtracted by hand, since stopping the benchmark's own timer takes longer than opening a thousand flows.
func BenchmarkNewFlow(b *testing.B) {
	for _, rules := range []int{10, 1000, 10000} {
		for _, flows := range []int{1000, 50000} {
			b.Run(fmt.Sprintf("rules=%d/flows=%d", rules, flows), func(b *testing.B) {
				f, r := benchFilter(b, 100, rules)
				pkts := benchPackets(r, flows)
				for i, pkt := range pkts {
					binary.BigEndian.PutUint16(pkt[20:], uint16(i))
					binary.BigEndian.PutUint16(pkt[22:], uint16(1000+3*rand.IntN(rules)))
				}
				var spent time.Duration
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; n < b.N; {
					start := time.Now()
					for _, pkt := range pkts[:min(flows, b.N-n)] {
						if v := f.Out(pkt); !v.Pass {
							b.Fatal(v.Reason)
						}
					}
					spent += time.Since(start)
					n += flows
					empty(f)
				}
				b.ReportMetric(float64(spent)/float64(b.N), "ns/op")
			})
		}
	}
}

// empty ends all flows and drains their records.
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
