package path_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// offer returns the Offer of a node with these addresses.
func offer(nat pathmsg.NATClass, addrs ...string) pathmsg.Offer {
	o := pathmsg.Offer{NAT: nat}
	for _, a := range addrs {
		o.Candidates = append(o.Candidates, netip.MustParseAddrPort(a))
	}
	return o
}

// TestWhyNotDirect checks the reason given for a peer that no address reaches, for various combinations of the two networks.
func TestWhyNotDirect(t *testing.T) {
	const v4, v6 = "198.51.100.7:41641", "[2001:db8::7]:41641"
	for name, c := range map[string]struct {
		here, there pathmsg.Offer
		addrs       []string
		after       time.Duration
		cause       path.Cause
		why         string
	}{
		"no address":        {here: offer(pathmsg.NATEasy, v4), cause: path.NoAddress, why: "the peer has told of no address"},
		"just begun":        {here: offer(pathmsg.NATEasy, v4), addrs: []string{v4, v6}, after: 100 * time.Millisecond, cause: path.Looking, why: "still looking, at its 2 addresses"},
		"blocked here":      {here: offer(pathmsg.NATBlocked, v4), there: offer(pathmsg.NATEasy), addrs: []string{v4}, cause: path.BlockedHere, why: "UDP is blocked here"},
		"blocked there":     {here: offer(pathmsg.NATEasy, v4), there: offer(pathmsg.NATBlocked), addrs: []string{v4}, cause: path.BlockedThere, why: "UDP is blocked there"},
		"blocked":           {here: offer(pathmsg.NATBlocked, v4), there: offer(pathmsg.NATBlocked), addrs: []string{v4}, cause: path.BlockedHere, why: "UDP is blocked here and there"},
		"hard NATs":         {here: offer(pathmsg.NATHard, v4), there: offer(pathmsg.NATHard), addrs: []string{v4}, cause: path.HardNATs, why: "hard NAT here and hard NAT there"},
		"no family":         {here: offer(pathmsg.NATEasy, v4), there: offer(pathmsg.NATNone), addrs: []string{v6}, cause: path.NoFamily, why: "it has only IPv6 addresses, and this machine only IPv4"},
		"no answer":         {here: offer(pathmsg.NATEasy, v4), addrs: []string{v4}, cause: path.NoAnswer, why: "no answer from its only address (easy NAT here), tried every 5 s"},
		"NATs of two kinds": {here: offer(pathmsg.NATHard, v4, v6), there: offer(pathmsg.NATEasy), addrs: []string{v4, v6}, cause: path.NoAnswer, why: "no answer from its 2 addresses (hard NAT here, easy NAT there), tried every 5 s"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newCourse(home, c.addrs...)
			if v, _ := p.finder.View(peer); v.Cause != path.Unsent || !v.Since.IsZero() {
				t.Errorf("before anything was sent: %+v", v)
			}
			p.step(path.Offering{Offer: c.here})
			begun := p.now
			p.step(path.Wanted{ID: peer})
			p.step(path.Got{ID: peer, From: path.Way{Relay: home}, Message: c.there})
			after := c.after
			if after == 0 {
				after = 2 * time.Second
			}
			p.live(after, true, nowhere)
			v, _ := p.finder.View(peer)
			if v.Way != (path.Way{Relay: home}) || v.Cause != c.cause || v.Why != c.why || !v.Since.Equal(begun) {
				t.Errorf("%+v, want %s: %s", v, c.cause, c.why)
			}
		})
	}
}

// TestViewFollowsTheWay checks that a direct path needs no reason, and that one in doubt and one that was lost have one.
func TestViewFollowsTheWay(t *testing.T) {
	const there = "198.51.100.7:41641"
	c := newCourse(home, there)
	c.step(path.Wanted{ID: peer})
	c.live(time.Second, true, only(there))
	v, _ := c.finder.View(peer)
	direct := path.Way{Addr: netip.MustParseAddrPort(there)}
	if v.Way != direct || v.Cause != "" || v.Why != "" || v.Doubt || v.Since.IsZero() {
		t.Errorf("direct: %+v", v)
	}
	c.live(250*time.Millisecond, false, nowhere)
	if v, _ := c.finder.View(peer); v.Way != direct || !v.Doubt || v.Cause != path.InDoubt || v.Why == "" {
		t.Errorf("in doubt: %+v", v)
	}
	c.live(10*time.Second, true, nowhere)
	v, _ = c.finder.View(peer)
	if want := "the direct way stopped answering; no answer from its only address, tried every 5 s"; v.Way.Relay != home || v.Cause != path.NoAnswer || v.Why != want {
		t.Errorf("lost: %+v, want %s", v, want)
	}
	c.step(path.Known{ID: peer, Endpoints: nil, Relay: home + 1})
	moved, _ := c.finder.View(peer)
	if moved.Way.Relay != home+1 || !moved.Since.After(v.Since) {
		t.Errorf("at another relay: %+v, since before %v", moved, v.Since)
	}
	c.step(path.Known{ID: peer})
	if v, _ := c.finder.View(peer); !v.Way.IsZero() || !strings.HasSuffix(v.Why, "; and it waits at no relay") {
		t.Errorf("at no relay: %+v", v)
	}
}
