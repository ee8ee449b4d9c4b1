package bind_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
)

// TestReadersShareAPort sends from many addresses to a port with several sockets: each sender's packets arrive on one of them,
// in order, and none is lost. Another program cannot share the port.
func TestReadersShareAPort(t *testing.T) {
	const (
		readers = 4
		senders = 64
		packets = 50
	)
	system, ok := bind.System(readers).(bind.Runs)
	if !ok {
		t.Fatal("it moves no runs")
	}
	fns, port, err := system.OpenRuns(0)
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	families := 2
	if len(fns) == readers {
		families = 1 // no IPv6 here
	}
	if len(fns) != families*readers {
		t.Fatalf("%d sockets for %d families", len(fns), families)
	}
	for _, other := range []conn.Bind{bind.System(1), bind.System(readers)} {
		if _, _, err := other.Open(port); err == nil {
			other.Close()
			t.Error("another one opened the port too")
		}
	}

	type got struct {
		reader int
		from   netip.AddrPort
		number uint32
	}
	all := make(chan got, senders*packets)
	done := make(chan struct{}, len(fns))
	for reader, fn := range fns {
		go func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, bind.RunSize)
			for {
				n, size, from, err := fn(buf)
				if err != nil {
					return
				}
				a := netip.MustParseAddrPort(from.DstToString())
				for at := 0; at < n; at += size {
					all <- got{reader, a, binary.BigEndian.Uint32(buf[at:])}
				}
			}
		}()
	}
	for range senders {
		c, err := net.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for n := range packets {
			if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(n))); err != nil {
				t.Fatal(err)
			}
		}
	}
	reader, next, busy := map[netip.AddrPort]int{}, map[netip.AddrPort]uint32{}, map[int]bool{}
	late := time.After(time.Minute)
	for range senders * packets {
		select {
		case g := <-all:
			if before, known := reader[g.from]; known && before != g.reader {
				t.Fatalf("%s is read by reader %d, then by %d", g.from, before, g.reader)
			}
			if next[g.from] != g.number {
				t.Fatalf("from %s packet %d comes where %d should", g.from, g.number, next[g.from])
			}
			reader[g.from], next[g.from], busy[g.reader] = g.reader, g.number+1, true
		case <-late:
			t.Fatalf("packets are missing: %v", next)
		}
	}
	if len(busy) != readers { // 64 senders leave one out once in ten million times
		t.Errorf("%d of %d readers had something to do", len(busy), readers)
	}
	if err := system.Close(); err != nil {
		t.Error(err)
	}
	for range fns {
		<-done
	}
}
