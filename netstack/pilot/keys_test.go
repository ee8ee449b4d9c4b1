package pilot_test

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

func newPathKey(t *testing.T) key.PathPrivate {
	t.Helper()
	k, err := key.NewPath(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A message is accepted once, even if its sender was removed meanwhile, or the Pilot is another one.
func TestOldMessagesOfAPeerThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bind.New(bind.Config{Inner: sim.New(1).Host("a", addr("192.0.2.1")).Bind()})
		own, theirs := newPathKey(t), newPathKey(t)
		cfg := pilot.Config{Self: 1, Boxes: pathmsg.NewBoxes(own), Bind: b}
		box, err := pathmsg.NewBox(theirs, own.Public(), 0)
		if err != nil {
			t.Fatal(err)
		}
		from := b.RelayEndpoint(bind.Via{Relay: 200, Peer: 2})
		offer := box.Seal(nil, pathmsg.Offer{Candidates: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.2:7")}})
		p := pilot.New(cfg)
		hears := func(msg []byte, want path.Cause) {
			t.Helper()
			p.SetPeer(2, theirs.Public(), proto.Reach{})
			p.Path(from, msg)
			synctest.Wait()
			if v, _ := p.View(2); v.Cause != want {
				t.Errorf("%+v, want %s", v, want)
			}
		}
		hears(offer, path.Looking)
		p.RemovePeer(2)
		hears(offer, path.Unsent)
		p.Close()
		p = pilot.New(cfg)
		defer p.Close()
		hears(offer, path.Unsent)
		hears(box.Seal(nil, pathmsg.Offer{}), path.NoAddress)
	})
}
