package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Link describes what happens to packets between two hosts, the same in both directions.
type Link struct {
	Latency time.Duration // one way
	Jitter  time.Duration // maximum extra delay of a UDP packet; packets may overtake each other
	Loss    float64       // fraction of UDP packets lost, 0 to 1
	Cut     bool          // nothing gets through

	Reorder   float64 // fraction of UDP packets delayed by half the latency more
	Duplicate float64 // fraction of UDP packets that arrive twice

	MTU         int  // the largest IP packet; 0 means no limit. Streams know it, and fit.
	NoFragments bool // oversized UDP packets are lost even if they may be fragmented
	NoICMP      bool // senders are not told that a packet was too large: a black hole
}

// delay returns the delay of a UDP packet.
func (l *link) delay() time.Duration {
	d := l.Latency
	if l.Jitter > 0 {
		d += time.Duration(l.rnd.Float64() * float64(l.Jitter))
	}
	if l.Reorder > 0 && l.rnd.Float64() < l.Reorder {
		d += l.Latency/2 + time.Millisecond
	}
	return d
}

// passes reports whether a UDP packet gets through.
func (l *link) passes(d *datagram) bool {
	return !l.Cut && (l.Loss == 0 || l.rnd.Float64() >= l.Loss) && d.fits(l.Link)
}

// again delivers a packet a second time, if the link duplicates it.
func (l *link) again(to *Host, d datagram) {
	if l.Duplicate > 0 && l.rnd.Float64() < l.Duplicate {
		d.due = d.due.Add(l.delay())
		to.deliver(d)
	}
}

// DefaultLink is the link between hosts for which none was set.
var DefaultLink = Link{Latency: 5 * time.Millisecond}

// Internet connects hosts. One lock guards everything in it: the order of events matters more here than speed.
type Internet struct {
	seed uint64

	mu     sync.Mutex
	hosts  map[string]*Host
	root   *realm
	nats   int
	others Link // between hosts for which no link was set
	links  map[[2]*Host]*link
	pipes  map[*pipe]struct{}
	tap    func(Seen)
}

// link is a Link with its own random source.
type link struct {
	Link
	own bool // it was set for these two hosts
	rnd *rand.Rand
}

// New returns an Internet without hosts. The seed decides which packets are lost.
func New(seed uint64) *Internet {
	return &Internet{
		seed:   seed,
		hosts:  map[string]*Host{},
		root:   &realm{owners: map[netip.Addr]owner{}},
		others: DefaultLink,
		links:  map[[2]*Host]*link{},
		pipes:  map[*pipe]struct{}{},
	}
}

// Host adds a host. Others can dial it by its name, which may contain dots.
func (n *Internet) Host(name string, addrs ...netip.Addr) *Host {
	return n.newHost(n.root, name, addrs)
}

func (n *Internet) newHost(at *realm, name string, addrs []netip.Addr) *Host {
	h := &Host{net: n, name: name, realm: at, udp: map[uint16]*UDPConn{}, listeners: map[uint16]*Listener{}, nextPort: firstEphemeral}
	n.mu.Lock()
	if n.hosts[name] != nil {
		n.mu.Unlock()
		panic(fmt.Sprintf("sim: there is a host %s already", name))
	}
	h.number = len(n.hosts)
	n.hosts[name] = h
	n.mu.Unlock()
	h.SetAddrs(addrs...)
	return h
}

// SetDefault sets the link between hosts for which none was set.
func (n *Internet) SetDefault(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.others = l
	n.changed()
}

// SetLink sets the link between two hosts.
func (n *Internet) SetLink(a, b *Host, l Link) {
	n.change(a, b, func(x *Link) { *x = l })
}

// Cut silently stops everything between two hosts until Heal.
func (n *Internet) Cut(a, b *Host) { n.change(a, b, func(x *Link) { x.Cut = true }) }

// Heal ends a Cut.
func (n *Internet) Heal(a, b *Host) { n.change(a, b, func(x *Link) { x.Cut = false }) }

func (n *Internet) change(a, b *Host, f func(*Link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.between(a, b)
	f(&x.Link)
	x.own = true
	n.changed()
}

// ResetStreams breaks all streams between two hosts: both ends see a reset at once.
func (n *Internet) ResetStreams(a, b *Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pipes {
		if (p.fromHost == a && p.toHost == b) || (p.fromHost == b && p.toHost == a) {
			p.broken = true
			p.moved.fire()
			delete(n.pipes, p)
		}
	}
}

// between returns the link of two hosts. The caller holds the lock.
func (n *Internet) between(a, b *Host) *link {
	if a.number > b.number {
		a, b = b, a
	}
	x := n.links[[2]*Host{a, b}]
	if x == nil {
		x = &link{rnd: rand.New(rand.NewPCG(n.seed, uint64(a.number)<<32|uint64(b.number)))}
		n.links[[2]*Host{a, b}] = x
	}
	switch {
	case x.own:
	case a.realm == b.realm && a.realm.gateway != nil:
		x.Link = a.realm.gateway.lan()
	default:
		x.Link = n.others
	}
	return x
}

// changed re-examines everything that waits for the network to change. The caller holds the lock.
func (n *Internet) changed() {
	for p := range n.pipes {
		p.release()
	}
}

// signal wakes everyone who waits for a change. It is guarded by the lock of the state that it stands for.
type signal struct{ ch chan struct{} }

// changed returns a channel that is closed by the next fire.
func (s *signal) changed() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// await waits until ch is closed or one of the times has come; zero times never come.
func await(ch <-chan struct{}, times ...time.Time) {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if first.IsZero() {
		<-ch
		return
	}
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	select {
	case <-ch:
	case <-timer.C:
	}
}

// past reports whether a deadline has come.
func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }
