package machine

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// oracle is what is known of a peer, without any of the machine's bookkeeping.
type oracle struct {
	machine  *identitytest.Machine
	in       bool   // in the netmap
	number   uint16 // its addresses
	sequence uint64
	from, to time.Time
	peer     proto.Peer
}

// history is what the machine was told.
type history struct {
	*world
	rt      *rapid.T
	peers   []*oracle
	version uint64
	grace   time.Duration
	serves  bool
	since   time.Time
	last    time.Time
	past    []time.Time // last, of all earlier contacts, starting with the latest that lasted for Settle
}

// good reports from first principles whether a peer may be used at the moment.
func (h *history) good(o *oracle) bool {
	in := func(t time.Time) bool { return !t.Before(o.from.Add(-cert.Skew)) && t.Before(o.to.Add(cert.Skew)) }
	if !o.in {
		return false
	}
	if in(h.now) {
		return true
	}
	if h.now.Before(o.from) {
		return false
	}
	covered := func(at, until time.Time) bool { return !at.IsZero() && in(at) && h.now.Before(until) }
	settling := h.now.Sub(h.since) < Settle
	if !h.serves {
		settling = h.last.Sub(h.since) < Settle
		if covered(h.last, h.last.Add(h.grace)) {
			return true
		}
	}
	return settling && slices.ContainsFunc(h.past, func(at time.Time) bool { return covered(at, at.Add(h.grace)) })
}

func (h *history) issue(o *oracle) {
	o.sequence++
	o.machine.Number = o.number
	life := time.Duration(rapid.Int64Range(10, 90).Draw(h.rt, "life")) * time.Minute
	o.from, o.to = h.now.Truncate(time.Second), h.now.Truncate(time.Second).Add(life)
	o.peer = proto.Peer{ID: o.machine.ID, Certificate: h.mesh.Issue(o.machine, o.sequence, o.from, life)}
}

func (h *history) current() *proto.Netmap {
	var peers []proto.Peer
	for _, o := range h.peers {
		if o.in {
			peers = append(peers, o.peer)
		}
	}
	return h.netmap(h.version, h.grace, peers...)
}

// publish sends what changed, as a delta or as a whole netmap.
func (h *history) publish() {
	h.version++
	nm := h.current()
	if old := h.m.netmap; old != nil && rapid.Bool().Draw(h.rt, "delta") {
		h.step(Change{proto.Diff(old, nm)})
	} else {
		h.step(Snapshot{nm})
	}
	h.last = h.now
	if h.acked.N != h.version {
		h.rt.Fatalf("version %d was not acknowledged (%v); problems: %q", h.version, h.acked, h.m.View(h.now).Problems)
	}
}

func (h *history) check() {
	var want, open, engine []proto.NodeID
	for _, o := range h.peers {
		id := o.machine.ID
		if h.good(o) {
			want = append(want, id)
		}
		if len(h.passes(o.machine.Identity().Addrs.V6, []proto.NodeID{id})) > 0 {
			open = append(open, id)
		}
		if _, ok := h.engine[id]; ok {
			engine = append(engine, id)
		}
	}
	if !slices.Equal(want, open) || !slices.Equal(want, engine) {
		h.rt.Fatalf("at %v: good are %v, the filter passes %v, the engine knows %v; problems: %q",
			h.now, want, open, engine, h.m.View(h.now).Problems)
	}
}

// TestNoPeerPassesWithoutBeingGood checks that, whatever happens in whatever order, after each event filter and engine know
// exactly the good peers, and between any two effects they never assign an address to different nodes.
func TestNoPeerPassesWithoutBeingGood(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{world: enrolled(rt), rt: rt}
		h.disk.Self = h.mesh.Self(h.self, 1, noon, 24*hour)
		for n := range 5 {
			m := h.mesh.Machine(uint16(2+n), string(rune('a'+n)))
			h.peers = append(h.peers, &oracle{machine: m, number: m.Number})
		}
		h.boot()
		pick := func() *oracle { return h.peers[rapid.IntRange(0, len(h.peers)-1).Draw(rt, "peer")] }
		connect := func() {
			if !h.serves {
				if h.last.Sub(h.since) >= Settle {
					h.past = nil
				}
				if !h.last.IsZero() {
					h.past = append(h.past, h.last)
				}
				h.serves, h.since, h.last = true, h.now, h.now
				h.step(Connected{})
			}
		}
		connect()
		h.publish()
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { h.check() },
			"time passes": func(*rapid.T) {
				h.wait(time.Duration(rapid.Int64Range(0, 40*60).Draw(rt, "seconds")) * time.Second)
				if h.serves && rapid.Bool().Draw(rt, "heard") {
					h.step(Heard{})
					h.last = h.now
				}
			},
			"lose": func(*rapid.T) {
				if h.serves {
					h.serves = false
					h.step(Lost{Reason: "gone"})
				}
			},
			"connect": func(*rapid.T) { connect() },
			"renew": func(rt *rapid.T) {
				if o := pick(); h.serves && o.in {
					h.issue(o)
					h.publish()
				}
			},
			"come": func(rt *rapid.T) {
				if o := pick(); h.serves && !o.in {
					o.in = true
					h.issue(o)
					h.publish()
				}
			},
			"go": func(rt *rapid.T) {
				if o := pick(); h.serves && o.in {
					o.in = false
					h.publish()
				}
			},
			"swap addresses": func(rt *rapid.T) {
				a, b := pick(), pick()
				if h.serves && a != b && a.in && b.in {
					a.number, b.number = b.number, a.number
					h.issue(a)
					h.issue(b)
					h.publish()
				}
			},
			"take the address of one who goes": func(rt *rapid.T) {
				a, b := pick(), pick()
				if h.serves && a != b && a.in && !b.in {
					a.number, b.number = b.number, a.number
					a.in, b.in = false, true
					a.machine.Number = a.number
					h.issue(b)
					h.publish()
				}
			},
			"endpoints": func(rt *rapid.T) {
				if o := pick(); h.serves && o.in {
					o.peer.Endpoints = []proto.Endpoint{{Kind: proto.EndpointInterface, Addr: endpoint(rapid.Uint8().Draw(rt, "host"))}}
					h.publish()
				}
			},
			"grace": func(rt *rapid.T) {
				if h.serves {
					h.grace = time.Duration(rapid.Int64Range(0, 3).Draw(rt, "hours")) * hour
					h.publish()
				}
			},
			"restart": func(*rapid.T) {
				if h.serves {
					h.step(Lost{Reason: "restart"})
				}
				h.serves = false
				h.step(Stop{})
				h.since, h.past = time.Time{}, nil // of all contacts, the disk remembers only when the last one ended
				h.boot()
			},
		})
	})
}
