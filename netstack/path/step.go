package path

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// silence is how long a peer may be silent while packets are sent to it. WireGuard answers within 10 s of the first packet
	// that was not answered otherwise.
	silence = 11 * time.Second
	// retryMin and retryMax bound the pause between two rounds of trying all candidates.
	retryMin = 5 * time.Second
	retryMax = 80 * time.Second
	// recent is how long after its last packet a peer may still hold a session with us.
	recent = 3 * time.Minute
	// keepalive is the size of WireGuard's empty packet, which is never answered.
	keepalive = 32
)

// Event is something that happened: a netmap added, changed or removed a peer, counters were read, or this host's addresses
// changed.
type Event interface{ event() }

// Known reports that a peer exists, with these endpoints.
type Known struct {
	ID        proto.NodeID
	Endpoints []proto.Endpoint
	Relay     proto.NodeID // the relay where it receives packets; 0 means none. Only a Finder uses it.
}

// Gone reports that a peer was removed.
type Gone struct{ ID proto.NodeID }

// Seen carries the engine's counters for a peer. It should come every few seconds for peers with traffic.
type Seen struct {
	ID            proto.NodeID
	Endpoint      netip.AddrPort // where packets to the peer go; zero until it is known which candidate works
	LastHandshake time.Time      // zero if there was none
	Rx, Tx        uint64         // bytes
}

// Moved reports that the addresses of this host's interfaces changed.
type Moved struct{ Local []netip.Prefix }

func (Known) event() {}
func (Gone) event()  {}
func (Seen) event()  {}
func (Moved) event() {}

// Effect is something to be done to the engine.
type Effect interface{ effect() }

// Point gives the engine a peer's candidates. Now asks it to send something to all of them at once.
type Point struct {
	ID         proto.NodeID
	Candidates []netip.AddrPort
	Now        bool
}

func (Point) effect() {}

// peer is what is known about the path to one peer.
type peer struct {
	endpoints  []proto.Endpoint
	candidates []netip.AddrPort
	current    netip.AddrPort // zero means any of the candidates
	rx, tx     uint64
	heard      time.Time // when rx last grew; zero means never
	waiting    time.Time // since when packets go out with none coming back; zero if some do
	asked      bool      // whether anything that calls for an answer was sent since all candidates were tried
	tried      time.Time // when that was
	pause      time.Duration
}

// State tracks the path to every peer. It is not safe for concurrent use.
type State struct {
	bounds Bounds
	local  []netip.Prefix
	peers  map[proto.NodeID]*peer
}

// New returns a State without peers, for a host whose interfaces have the prefixes local.
func New(bounds Bounds, local []netip.Prefix) *State {
	return &State{bounds: bounds, local: slices.Clone(local), peers: map[proto.NodeID]*peer{}}
}

// Step handles one event, and returns what is to be done.
func (s *State) Step(now time.Time, e Event) []Effect {
	switch e := e.(type) {
	case Known:
		return s.known(now, e)
	case Gone:
		delete(s.peers, e.ID)
	case Seen:
		return s.seen(now, e)
	case Moved:
		return s.moved(now, e)
	}
	return nil
}

// Candidates returns the addresses to give the engine with a peer's configuration: the endpoint in use, if one is known, then
// the candidates, best first. With the endpoint in use first, packets keep going where they arrive until the peer's next one.
func (s *State) Candidates(id proto.NodeID) []netip.AddrPort {
	if p := s.peers[id]; p != nil {
		return s.list(p)
	}
	return nil
}

func (s *State) known(now time.Time, e Known) []Effect {
	p, old := s.peers[e.ID]
	if !old {
		p = &peer{}
		s.peers[e.ID] = p
	}
	p.endpoints = slices.Clone(e.Endpoints)
	candidates := s.bounds.Candidates(s.local, p.endpoints)
	if slices.Equal(candidates, p.candidates) {
		return nil
	}
	p.candidates = candidates
	switch {
	case len(candidates) == 0:
		return nil // the engine keeps what works, and the peer may still find us
	case !p.current.IsValid():
		// Nothing works so far: the next handshake goes to all candidates. One is due if packets are waiting.
		return s.point(now, e.ID, p, old && !p.waiting.IsZero())
	case slices.Contains(candidates, p.current):
		return nil
	}
	return s.point(now, e.ID, p, true)
}

func (s *State) seen(now time.Time, e Seen) []Effect {
	p := s.peers[e.ID]
	if p == nil {
		return nil
	}
	rxGrew, txGrew := e.Rx > p.rx, e.Tx > p.tx+keepalive
	p.current, p.rx, p.tx = e.Endpoint, e.Rx, e.Tx
	switch {
	case rxGrew:
		p.heard, p.waiting, p.asked, p.pause = now, time.Time{}, false, 0
	case txGrew:
		p.asked = true
		if p.waiting.IsZero() {
			p.waiting = now
		}
	}
	switch {
	case !p.current.IsValid():
		return nil // handshakes go to all candidates already
	case !p.asked || now.Sub(p.waiting) < silence:
		return nil
	case now.Sub(p.tried) < p.pause:
		return nil
	}
	return s.point(now, e.ID, p, true)
}

func (s *State) moved(now time.Time, e Moved) []Effect {
	s.local = slices.Clone(e.Local)
	var effects []Effect
	for id, p := range s.peers {
		p.candidates = s.bounds.Candidates(s.local, p.endpoints)
		live := !p.heard.IsZero() && now.Sub(p.heard) < recent
		p.pause = 0
		effects = append(effects, s.point(now, id, p, live)...)
	}
	slices.SortFunc(effects, func(x, y Effect) int {
		if x.(Point).ID < y.(Point).ID {
			return -1
		}
		return 1
	})
	return effects
}

func (s *State) list(p *peer) (list []netip.AddrPort) {
	if p.current.IsValid() && s.bounds.Check(p.current) == nil {
		list = append(list, p.current)
	}
	for _, a := range p.candidates {
		if !slices.Contains(list, a) && len(list) < MaxCandidates {
			list = append(list, a)
		}
	}
	return list
}

// point has the engine try the endpoint in use, then all candidates.
func (s *State) point(now time.Time, id proto.NodeID, p *peer, atOnce bool) []Effect {
	list := s.list(p)
	if len(list) == 0 {
		return nil
	}
	if atOnce {
		p.tried, p.asked = now, false
		p.pause = min(max(2*p.pause, retryMin), retryMax)
	}
	return []Effect{Point{ID: id, Candidates: list, Now: atOnce}}
}
