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

// opener is a node behind a hard NAT, whose system opens further sockets slowly, and its partner, which punches with it.
type opener struct {
	*partner
	inner  slowSockets
	bind   *bind.Bind
	public key.PathPublic // of the partner
	course *bind.Course
}

// easyAt is where the partner is mapped.
var easyAt = netip.MustParseAddrPort("198.51.100.2:41641")

func newOpener(t *testing.T) *opener {
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
	p := pilot.New(pilot.Config{Self: 1, Boxes: pathmsg.NewBoxes(own), Bind: b})
	b.Serve(p, nil)
	if _, _, err := b.Open(port); err != nil {
		t.Fatal(err)
	}
	box, err := pathmsg.NewBox(theirs, own.Public(), pathmsg.Ends{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &partner{t, p, b.RelayEndpoint(bind.Via{Relay: 200, Peer: 2}), box}
	course := p.SetPeer(2, theirs.Public(), proto.Reach{HomeRelay: 200})
	p.Offer(pathmsg.Offer{NAT: pathmsg.NATHard, Candidates: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:7")}})
	return &opener{x, inner, b, theirs.Public(), course}
}

// punches has the two begin a punch.
func (o *opener) punches() {
	o.says(pathmsg.Offer{NAT: pathmsg.NATEasy, Candidates: []netip.AddrPort{easyAt}})
	o.pilot.Wanted(2, o.course)
	time.Sleep(time.Second)
	o.says(pathmsg.Punch{Toward: easyAt})
	time.Sleep(time.Second)
}

// ends closes everything, and checks that no socket remains.
func (o *opener) ends() {
	if o.bind.Extras() != 0 || o.inner.open.Load() != 0 {
		o.t.Errorf("%d sockets are left, %d are known", o.inner.open.Load(), o.bind.Extras())
	}
	o.pilot.Close()
	if err := o.bind.Close(); err != nil {
		o.t.Fatal(err)
	}
}

// However long the system takes to open the sockets of a punch, the Pilot answers its callers and steers other peers, and no
// socket remains in the end.
func TestSocketsThatOpenSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newOpener(t)
		x.punches()
		begun := time.Now()
		for range 100 {
			if v, ok := x.pilot.View(2); !ok || v.Cause != path.NoAnswer {
				t.Fatalf("%+v, %t", v, ok)
			}
			x.pilot.SetPeer(3, x.public, proto.Reach{})
			x.pilot.RemovePeer(3)
		}
		if took := time.Since(begun); took > 0 || x.inner.open.Load() > 0 {
			t.Errorf("questions took %s, while %d sockets are open", took, x.inner.open.Load())
		}
		x.inner.let <- struct{}{} // one opens, the next one blocks
		synctest.Wait()
		if x.bind.Extras() != 1 || x.inner.open.Load() != 1 {
			t.Errorf("%d sockets are open, %d are known", x.inner.open.Load(), x.bind.Extras())
		}
		close(x.inner.let)
		synctest.Wait()
		if x.bind.Extras() != path.MaxSockets {
			t.Errorf("%d sockets are open", x.bind.Extras())
		}
		time.Sleep(20 * time.Second) // without any answer
		x.ends()
	})
}

// The same if the system opens none for so long that several punches wait for it.
func TestSocketsThatDoNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newOpener(t)
		for range 6 {
			x.punches()
			time.Sleep(30 * time.Minute)
			begun := time.Now()
			if _, ok := x.pilot.View(2); !ok || time.Since(begun) > 0 {
				t.Fatalf("%t after %s", ok, time.Since(begun))
			}
		}
		close(x.inner.let)
		time.Sleep(time.Second)
		x.ends()
	})
}
