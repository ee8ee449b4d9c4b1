package machine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const hour = time.Hour

// world carries out a machine's effects on an engine and a filter in memory, and on a disk. After each effect it checks that
// engine and filter agree.
type world struct {
	t    fataler
	mesh *identitytest.Mesh
	self *identitytest.Machine
	m    *Machine
	now  time.Time

	program *filter.Program
	engine  map[proto.NodeID]Peer
	owner   map[netip.Addr]proto.NodeID
	// routeOwner is the peer that each route belongs to: as in WireGuard, the last one that was given it.
	routeOwner map[netip.Prefix]proto.NodeID
	disk       Loaded
	acked      proto.Version
	resume     proto.Version // what the next stream resumes from
	armed      time.Time
	path       bool
	events     []Event // that follow from effects
	effects    []Effect
	refuse     func(Effect) error
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

func newWorld(t fataler) *world {
	w := &world{t: t, mesh: identitytest.New(noon.Add(-24 * hour)), now: noon}
	w.self = w.mesh.Machine(1, "self")
	w.engine, w.owner, w.routeOwner = map[proto.NodeID]Peer{}, map[netip.Addr]proto.NodeID{}, map[netip.Prefix]proto.NodeID{}
	return w
}

// enrolled returns a world with an enrolled node that is to be up.
func enrolled(t fataler) *world {
	w := newWorld(t)
	w.disk.Self = w.mesh.Self(w.self, 1, noon, hour)
	w.disk.Join = &state.Join{URLs: []string{"https://c.test"}, Root: [32]byte{1}}
	w.disk.Wanted.Up = true
	w.disk.Key = w.self.Node.Public()
	return w
}

// boot starts a machine from what is on the disk.
func (w *world) boot() {
	w.program, w.engine, w.owner = nil, map[proto.NodeID]Peer{}, map[netip.Addr]proto.NodeID{}
	w.routeOwner = map[netip.Prefix]proto.NodeID{}
	w.path, w.armed = false, time.Time{}
	w.m = New(Config{Features: proto.Features(), Program: "test", Rand: rand.New(rand.NewPCG(1, 2))}, w.disk)
	w.step(Start{})
}

func (w *world) step(e Event) {
	w.t.Helper()
	w.effects = nil
	for events := []Event{e}; len(events) > 0; events = events[1:] {
		var failed, unsaved bool
		w.events = nil
		for _, eff := range w.m.Step(w.now, events[0]) {
			w.effects = append(w.effects, eff)
			if w.refuse != nil {
				if err := w.refuse(eff); err != nil {
					failed, unsaved = true, unsaved || saves(eff)
					w.events = append(w.events, Failed{eff, err.Error()})
					continue
				}
			}
			if _, ack := eff.(Ack); ack && failed || saves(eff) && unsaved {
				continue
			}
			w.carryOut(eff)
			w.agree(eff)
		}
		events = append(events, w.events...)
	}
	if !w.resume.IsZero() && (w.disk.Netmap == nil || w.disk.Netmap.Version != w.resume) {
		w.t.Errorf("the next stream resumes from version %v, which is not on the disk", w.resume)
	}
}

func saves(e Effect) bool {
	switch e.(type) {
	case SaveWanted, SaveJoin, SaveIdentity, SaveNetmap, SaveDelta, SaveFloors:
		return true
	}
	return false
}

func (w *world) carryOut(eff Effect) {
	switch e := eff.(type) {
	case Install:
		w.program = e.Program
	case SetPeers:
		for _, p := range e.Peers {
			if old, ok := w.engine[p.ID]; ok {
				w.disown(old)
			}
			w.engine[p.ID] = p
			for _, a := range p.Addrs.Slice() {
				w.owner[a] = p.ID
			}
			for _, route := range p.Routes {
				w.routeOwner[route] = p.ID
			}
		}
	case RemovePeers:
		for _, id := range e.IDs {
			w.disown(w.engine[id])
			delete(w.engine, id)
		}
	case StartPath:
		w.routeOwner = map[netip.Prefix]proto.NodeID{}
		w.path, w.engine, w.owner = true, map[proto.NodeID]Peer{}, map[netip.Addr]proto.NodeID{}
		w.events = append(w.events, PathUp{})
	case StopPath:
		w.path, w.engine, w.owner = false, map[proto.NodeID]Peer{}, map[netip.Addr]proto.NodeID{}
	case SaveWanted:
		w.disk.Wanted = e.Wanted
	case SaveJoin:
		w.disk.Join = nil
		if len(e.Join.URLs) > 0 {
			w.disk.Join = &e.Join
		}
	case SaveIdentity:
		w.disk.Self = w.selfOf(e)
	case SaveNetmap:
		w.disk.Netmap = e.Netmap
	case SaveDelta:
		nm, err := w.disk.Netmap.Apply(e.Delta)
		if err != nil {
			w.t.Fatalf("the disk cannot take the delta: %v", err)
		}
		if d := proto.Diff(nm, e.Netmap); !d.Empty() {
			w.t.Fatalf("the delta leads elsewhere than the netmap that is in force: %+v", d)
		}
		w.disk.Netmap = nm
	case SaveFloors:
		w.disk.Floors = e.Floors
	case Turn:
		w.disk.Key = e.To
	case Forget:
		w.disk = Loaded{Wanted: w.disk.Wanted}
	case Ack:
		w.acked = e.Version
		if w.disk.Netmap == nil || w.disk.Netmap.Version != e.Version {
			w.t.Errorf("version %v was acknowledged and is not on the disk", e.Version)
		}
		if w.program != nil && w.program.Version() != e.Version && w.program.Version().Compare(e.Version) > 0 {
			w.t.Errorf("version %v was acknowledged, %v is enforced", e.Version, w.program.Version())
		}
	case Attach:
		w.resume = e.Applied
	case Resume:
		w.resume = e.Applied
	case Hang:
		w.resume = proto.Version{}
	case Arm:
		w.armed = e.At
	}
}

func (w *world) selfOf(e SaveIdentity) (self *selfIdentity) {
	s, err := checkSelf(e.Record, w.self)
	if err != nil {
		w.t.Fatalf("an identity that does not hold was saved: %v", err)
	}
	return s
}

func (w *world) disown(p Peer) {
	for _, a := range p.Addrs.Slice() {
		if w.owner[a] == p.ID {
			delete(w.owner, a)
		}
	}
	for route, id := range w.routeOwner {
		if id == p.ID {
			delete(w.routeOwner, route)
		}
	}
}

// portOf returns a port that rules open for one node only, so that it reveals which node the filter takes an address for.
func portOf(id proto.NodeID) uint16 { return 1000 + uint16(id) }

// passes returns the nodes that the filter takes an address for.
func (w *world) passes(a netip.Addr, ids []proto.NodeID) (who []proto.NodeID) {
	for _, id := range ids {
		if _, r := w.program.Why(proto.In, a, proto.ProtoTCP, portOf(id)); r == filter.Permitted {
			who = append(who, id)
		}
	}
	return who
}

// agree checks that filter and engine assign each address to the same node.
func (w *world) agree(after Effect) {
	w.t.Helper()
	ids := make([]proto.NodeID, 0, 20)
	for n := range 20 {
		ids = append(ids, proto.NodeID(n))
	}
	for a, owner := range w.owner {
		for _, id := range w.passes(a, ids) {
			if id != owner {
				w.t.Fatalf("after %T: the filter takes %v for node %d, the engine for %d", after, a, id, owner)
			}
		}
	}
}

// netmap returns a netmap whose rules tell nodes apart by port.
func (w *world) netmap(version uint64, grace time.Duration, peers ...proto.Peer) *proto.Netmap {
	slices.SortFunc(peers, func(a, b proto.Peer) int { return int(a.ID) - int(b.ID) })
	nm := w.mesh.Netmap(w.self, version, grace, peers...)
	nm.Sets, nm.Rules = nil, nil
	own := w.self.Identity().Addrs
	for _, p := range peers {
		name := fmt.Sprintf("node:%04d", p.ID)
		nm.Sets = append(nm.Sets, proto.Set{Name: name, Members: []proto.NodeID{p.ID}})
		nm.Rules = append(nm.Rules, proto.Rule{
			Key: name, Origin: proto.Origin{Path: "acls[0]", Line: 1}, Direction: proto.In,
			Peers: proto.Selector{Sets: []string{name}}, Local: []netip.Prefix{netip.PrefixFrom(own.V4, 32), netip.PrefixFrom(own.V6, 128)},
			Services: []proto.Service{{Proto: proto.ProtoTCP, First: portOf(p.ID), Last: portOf(p.ID)}},
		})
	}
	return nm
}

// open lists the nodes that pass.
func (w *world) open(peers ...*identitytest.Machine) (open []proto.NodeID) {
	for _, p := range peers {
		if len(w.passes(p.Identity().Addrs.V4, []proto.NodeID{p.ID})) > 0 {
			open = append(open, p.ID)
		}
	}
	return open
}

func (w *world) has(match func(Effect) bool) bool { return slices.ContainsFunc(w.effects, match) }

func isEffect[T Effect](e Effect) bool { _, ok := e.(T); return ok }

// wait lets time pass, with the ticks that were asked for.
func (w *world) wait(d time.Duration) {
	w.t.Helper()
	end := w.now.Add(d)
	for n := 0; !w.armed.IsZero() && !w.armed.After(end); n++ {
		if n > 1000 {
			w.t.Fatalf("the machine asks for one tick after the other at %v", w.now)
		}
		if w.armed.After(w.now) {
			w.now = w.armed
		}
		w.armed = time.Time{}
		w.step(Tick{})
		if w.armed.IsZero() {
			w.armed = w.m.armed
		}
	}
	w.now = end
}

func (w *world) expect(t *testing.T, s State) {
	t.Helper()
	if got := w.m.State(); got != s {
		t.Errorf("state %q, want %q; problems: %q", got, s, w.m.View(w.now).Problems)
	}
}

// endpoint returns an underlay address.
func endpoint(host uint8) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, host}), 41641)
}
