package pilot_test

import (
	"crypto/rand"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// slowSockets open their siblings only once they are allowed to.
type slowSockets struct {
	conn.Bind
	let  chan struct{}
	open *atomic.Int32
}

func (s slowSockets) Sibling() conn.Bind {
	return &slowSocket{s.Bind.(bind.Siblings).Sibling(), s}
}

type slowSocket struct {
	conn.Bind
	of slowSockets
}

func (s *slowSocket) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	<-s.of.let
	fns, actual, err := s.Bind.Open(port)
	if err == nil {
		s.of.open.Add(1)
	}
	return fns, actual, err
}

func (s *slowSocket) Close() error {
	s.of.open.Add(-1)
	return s.Bind.Close()
}

// partner is a peer whose messages a test sends through a relay.
type partner struct {
	t     *testing.T
	pilot *pilot.Pilot
	from  *bind.Endpoint
	box   *pathmsg.Box
}

func (p *partner) says(m pathmsg.Message) {
	p.pilot.Path(p.from, p.box.Seal(nil, m))
	synctest.Wait()
}

// However long the system takes to open the sockets of a punch, the Pilot answers its callers and steers other peers, and no
// socket remains in the end.
func TestSocketsThatOpenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		n.SetDefault(sim.Link{})
		inner := slowSockets{n.Host("a", addr("192.0.2.1")).Bind(), make(chan struct{}), new(atomic.Int32)}
		b := bind.New(bind.Config{Inner: inner})
		own, err := key.NewPath(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := key.NewPath(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		p := pilot.New(pilot.Config{Self: 1, Key: own, Since: time.Now(), Bind: b})
		b.Serve(p, nil)
		if _, _, err := b.Open(port); err != nil {
			t.Fatal(err)
		}
		box, err := pathmsg.NewBox(theirs, own.Public(), 0)
		if err != nil {
			t.Fatal(err)
		}
		easy := netip.MustParseAddrPort("198.51.100.2:41641")
		x := &partner{t, p, b.RelayEndpoint(bind.Via{Relay: 200, Peer: 2}), box}
		course := p.SetPeer(2, theirs.Public(), proto.Reach{HomeRelay: 200})
		p.Offer(pathmsg.Offer{NAT: pathmsg.NATHard, Candidates: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:7")}})
		x.says(pathmsg.Offer{NAT: pathmsg.NATEasy, Candidates: []netip.AddrPort{easy}})
		p.Wanted(2, course)
		time.Sleep(time.Second)
		x.says(pathmsg.Punch{Toward: easy})
		time.Sleep(time.Second)
		begun := time.Now()
		for range 100 {
			if v, ok := p.View(2); !ok || v.Cause != path.NoAnswer {
				t.Fatalf("%+v, %t", v, ok)
			}
			p.SetPeer(3, theirs.Public(), proto.Reach{})
			p.RemovePeer(3)
		}
		if took := time.Since(begun); took > 0 || inner.open.Load() > 0 {
			t.Errorf("questions took %s, while %d sockets are open", took, inner.open.Load())
		}
		inner.let <- struct{}{} // one opens, the next one blocks
		synctest.Wait()
		if b.Extras() != 1 || inner.open.Load() != 1 {
			t.Errorf("%d sockets are open, %d are known", inner.open.Load(), b.Extras())
		}
		close(inner.let)
		synctest.Wait()
		if b.Extras() != path.MaxSockets {
			t.Errorf("%d sockets are open", b.Extras())
		}
		time.Sleep(20 * time.Second) // without any answer
		if b.Extras() != 0 || inner.open.Load() != 0 {
			t.Errorf("%d sockets are left, %d are known", inner.open.Load(), b.Extras())
		}
		p.Close()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
