package filter

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestConcurrency runs all methods concurrently. At the end nothing passes, no flow is left, and the counters add up.
func TestConcurrency(t *testing.T) {
	f := New(Config{MaxFlows: 4096, PerPeer: 512})
	var programs []*Program
	for i := range 4 {
		r := testRuleset(8)
		r.Version.N = uint64(i)
		r.Peers = r.Peers[:8-i]
		for port := range uint16(16) {
			if int(port)%4 != i {
				r.rule(proto.In, tcpPorts(port, port), udpPorts(port, port))
				r.rule(proto.Out, tcpPorts(port, port), udpPorts(port, port))
			}
		}
		p, err := Compile(r)
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, p)
	}
	var traffic, service sync.WaitGroup
	stop := make(chan struct{})
	for n := range 4 {
		traffic.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			verdicts := make([]Verdict, 4)
			for range 5000 {
				us, them := v4(1), v4(2+random.IntN(8))
				lport, rport := uint16(random.IntN(16)), uint16(random.IntN(16))
				flags := []uint8{syn, synAck, ack, fin, rst}[random.IntN(5)]
				if n == 0 { // one goroutine sends, the others receive
					b := tcp(us, lport, them, rport, flags)
					f.OutBatch([][]byte{b, b, udp(us, lport, them, rport, 0), b}, []int{len(b), len(b), 28, len(b)}, 0, verdicts)
					continue
				}
				b := tcp(them, rport, us, lport, flags)
				pieces := cut(udp(them, rport, us, lport, 32), 16, uint32(random.IntN(50)))
				f.InBatch(0, [][]byte{b, pieces[0], b, pieces[1]}, 0, verdicts)
				f.In(unreachable(them, us, tcp(us, lport, them, rport, ack)))
				inFrom(f, proto.NodeID(2+random.IntN(8)), b)
			}
		})
	}
	service.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			f.Install(programs[i%4])
			f.Sweep(64, func(r Reset) {
				for _, b := range [][]byte{r.ToLocal, r.ToPeer} {
					var p packet.Packet
					if b != nil && packet.Parse(b, &p) != packet.OK {
						t.Errorf("reset %x", b)
					}
				}
			})
		}
	})
	service.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			f.Drain(func(r Record) {
				if r.Local.Addr().Is6() || r.Kind == 0 {
					t.Errorf("%+v", r)
				}
			})
			f.Counters()
			for id := range f.PeerDrops {
				if id < 2 || id > 9 {
					t.Errorf("drops of %v", id)
				}
			}
		}
	})
	traffic.Wait()
	close(stop)
	service.Wait()

	f.Install(nil)
	if !f.Sweep(0, func(Reset) {}) {
		t.Error("not done")
	}
	if c := f.Counters(); c.Flows != 0 || c.Started != c.Ended || c.Started == 0 || c.In.Packets == 0 {
		t.Errorf("%+v", c)
	}
	for i := range f.shards {
		for n := range f.shards[i].used {
			if f.shards[i].at(n).state != vacant {
				t.Error("an entry is taken")
			}
		}
		for _, slot := range f.shards[i].index {
			if slot != 0 {
				t.Error("a slot is taken")
			}
		}
	}
}

func TestNothingAllocates(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.In, tcpPorts(22, 22), udpPorts(53, 53), whole(proto.ProtoICMP))
	})
	port := uint16(0)
	opener := udp(v4(2), 0, v4(1), 53, 0)
	open := func() {
		port++
		opener[20], opener[21] = byte(port>>8), byte(port)
		if !w.In(opener).Pass {
			t.Fatal("dropped")
		}
	}
	for range 4000 {
		open()
	}
	w.pass(1 << 40)
	w.records()
	established := tcp(v4(2), 4000, v4(1), 22, syn)
	w.wantIn(Permitted, established)
	denied := tcp(v4(1), 4000, v4(2), 22, syn)
	reply := make([]byte, 0, packet.ReplyLimit)
	pieces := cut(udp(v4(2), 4000, v4(1), 53, 32), 16, 1)
	mistake := unreachable(v4(2), v4(1), tcp(v4(1), 22, v4(2), 4000, ack))
	super := segment(v4(1), 22, v4(2), 4000, ack, 1, 1001, 4000)
	bufs, sizes, verdicts := [][]byte{denied, denied}, []int{40, 40}, make([]Verdict, 2)
	for name, fn := range map[string]func(){
		"established": func() { w.In(established) },
		"new":         open,
		"denied":      func() { w.Out(denied).AppendReply(reply, denied) },
		"fragments":   func() { w.In(pieces[0]); w.In(pieces[1]); w.In(pieces[2]) },
		"error":       func() { w.In(mistake) },
		"batch":       func() { w.OutBatch(bufs, sizes, 0, verdicts); w.InBatch(2, bufs, 0, verdicts) },
		"malformed":   func() { w.In(denied[:30]) },
		"segments":    func() { w.OutSegments(super, 4) },
		"sweep":       func() { w.Sweep(0, func(Reset) {}) },
	} {
		if n := testing.AllocsPerRun(500, fn); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// FuzzPackets sends arbitrary packets both ways, unchanged and with the addresses of nodes.
func FuzzPackets(f *testing.F) {
	for _, b := range [][]byte{
		tcp(v4(2), 4000, v4(1), 22, syn), tcp(v6(1), 22, v6(2), 4000, ack), udp(v4(2), 1, v4(1), 53, 4),
		ping(v6(2), v6(1), 7), unreachable(v4(2), v4(1), udp(v4(1), 53, v4(2), 1, 4)),
		cut(udp(v4(2), 1, v4(1), 53, 40), 16, 1)[1], cut(udp(v6(2), 1, v6(1), 53, 40), 16, 1)[0],
	} {
		f.Add(b, b)
	}
	w := newWorldOf(f, Config{MaxFlows: 256, PerPeer: 64}, 3, func(r *Ruleset) {
		r.rule(proto.In, everything...)
		r.rule(proto.Out, everything...)
	})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		for _, pkt := range [][]byte{a, b, aimed(a, 2, 1), aimed(b, 2, 1), aimed(a, 1, 2), aimed(b, 1, 2)} {
			for _, d := range []proto.Direction{proto.In, proto.Out} {
				whole := append([]byte(nil), pkt...)
				v := w.In
				if d == proto.Out {
					v = w.Out
				}
				verdict := v(pkt)
				if verdict.Pass != (verdict.Reason == Permitted) || verdict.Pass && verdict.Refuse || verdict.Reason >= reasons {
					t.Fatalf("%+v for %x", verdict, pkt)
				}
				if string(whole) != string(pkt) {
					t.Fatalf("%x became %x", whole, pkt)
				}
				checkRow(t, w.Filter, d, pkt, b)
				var p packet.Packet
				if reply := verdict.AppendReply(nil, pkt); len(reply) > 0 && packet.Parse(reply, &p) != packet.OK {
					t.Fatalf("%x is answered by %x", pkt, reply)
				}
			}
		}
		w.pass(second.duration())
		w.records()
		if c := w.Counters(); c.Flows > 256 || len(w.fragments.known) > maxDatagrams {
			t.Fatalf("%d flows, %d datagrams", c.Flows, len(w.fragments.known))
		}
	})
}

// checkRow sends a packet and another one in batches and as several segments.
func checkRow(t *testing.T, f *Filter, d proto.Direction, pkt, other []byte) {
	row := [][]byte{pkt, pkt, other, pkt, pkt}
	verdicts := make([]Verdict, len(row))
	if d == proto.In {
		f.InBatch(2, row, 0, verdicts)
	} else {
		sizes := make([]int, len(row))
		for i, b := range row {
			sizes[i] = len(b)
		}
		f.OutBatch(row, sizes, 0, verdicts)
	}
	if d == proto.Out {
		verdicts = append(verdicts, f.OutSegments(pkt, 3))
	}
	var p packet.Packet
	for i, v := range verdicts {
		if v.Pass != (v.Reason == Permitted) || v.Reason >= reasons {
			t.Fatalf("%+v for %x", v, row)
		}
		if i < len(row) && v.Pass && packet.Parse(row[i], &p) != packet.OK {
			t.Fatalf("%x passes", row[i])
		}
	}
}

// aimed returns a packet with the addresses of two nodes.
func aimed(b []byte, src, dst int) []byte {
	b = append([]byte(nil), b...)
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		copy(b[12:], v4(src).AsSlice())
		copy(b[16:], v4(dst).AsSlice())
	case len(b) >= 40 && b[0]>>4 == 6:
		copy(b[8:], v6(src).AsSlice())
		copy(b[24:], v6(dst).AsSlice())
	}
	return b
}
