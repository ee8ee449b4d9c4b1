package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Link is what happens to packets between two hosts, the same both ways.
type Link struct {
	Latency time.Duration // one way
	Jitter  time.Duration // how much longer a UDP packet takes at most; it may be overtaken
	Loss    float64       // the share of UDP packets that is lost, 0 to 1
	Cut     bool          // nothing gets through

	Reorder   float64 // the share of UDP packets that take half as long again
	Duplicate float64 // the share of UDP packets that arrive twice

	MTU         int  // the largest IP packet; 0 means that there is no limit. Streams know it, and fit.
	NoFragments bool // larger UDP packets that may be fragmented are lost too
	NoICMP      bool // nobody is told that a packet was too large: a hole
}

// delay is how long a UDP packet takes.
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

// passes says whether a UDP packet gets through.
func (l *link) passes(d *datagram) bool {
	return !l.Cut && (l.Loss == 0 || l.rnd.Float64() >= l.Loss) && d.fits(l.Link)
}

// again delivers a packet a second time, if that is what the link does.
func (l *link) again(to *Host, d datagram) {
	if l.Duplicate > 0 && l.rnd.Float64() < l.Duplicate {
		d.due = d.due.Add(l.delay())
		to.deliver(d)
	}
}

// DefaultLink is between all hosts for which nothing else was said.
var DefaultLink = Link{Latency: 5 * time.Millisecond}

// Internet joins hosts. One lock guards all that is in it: the order of things matters more here than their speed.
type Internet struct {
	seed uint64

	mu     sync.Mutex
	hosts  map[string]*Host
	root   *realm
	nats   int
	others Link // between hosts for which nothing was said
	links  map[[2]*Host]*link
	pipes  map[*pipe]struct{}
	tap    func(Seen)
}

// link is a Link with its own losses.
type link struct {
	Link
	own bool // it was set for these two
	rnd *rand.Rand
}

// New is an Internet without hosts. The seed decides which packets are lost.
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

// Host adds a host. Others can dial it by its name, which may have dots in it.
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

// SetDefault changes what happens between hosts for which nothing was said.
func (n *Internet) SetDefault(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.others = l
	n.changed()
}

// SetLink changes what happens between two hosts.
func (n *Internet) SetLink(a, b *Host, l Link) {
	n.change(a, b, func(x *Link) { *x = l })
}

// Cut stops everything between two hosts, silently, until Heal.
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

// between finds the link of two hosts. The caller holds the lock.
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

// changed looks at everything again that waits for the network to be otherwise. The caller holds the lock.
func (n *Internet) changed() {
	for p := range n.pipes {
		p.release()
	}
}

// signal wakes all who wait for something to change. It is guarded by the lock of what it stands for.
type signal struct{ ch chan struct{} }

// changed is closed at the next fire.
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

// past says whether a deadline has come.
func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }
