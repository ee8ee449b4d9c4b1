package wg

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Inline is Redoubt's own WireGuard engine. It runs packets to completion: the goroutine that reads a batch also seals or opens
// it in place, and sends or writes it.
//
//	TUN ──► one per queue: read (filtered), seal, send ────────────────► bind
//	TUN ◄── one per socket: write (filtered), open, receive ◄─────────── bind
//	        one for all timers, one for the device's events
//
// Where device and bind move super-packets and runs, each system call moves as many packets as it can, and packets stay where
// they were read until they are sealed or written. Otherwise they move in batches of buffers.
//
// A peer that is only configured is an entry in three maps, and one in a table for each of its routes. The state needed to talk
// to it is created with the first packet in either direction, and dropped when its last session ends. The timestamp of its last
// handshake is kept.
//
// Locks, in order of acquisition: api (opening and closing), mu (the set of peers; moving a batch holds it for reading, so a
// holder of the write lock knows that no packet is in flight), a node's own, then those of indexes, gate, homes and timers.
type Inline struct {
	self proto.NodeID
	tun  tun.Device
	bind conn.Bind
	runs bind.Runs // the same bind; nil if packets move in batches
	log  *slog.Logger
	now  func() time.Time
	mtu  atomic.Int64

	limits session.Limits // of messages per session; zero means WireGuard's

	api   sync.Mutex
	open  bool   // the sockets are open
	asked uint16 // port; Rebind may get it after Configure has failed
	recv  sync.WaitGroup

	mu     sync.RWMutex
	closed bool
	port   uint16 // being listened on
	locals []*local
	nodes  map[proto.NodeID]*node
	byKey  map[[32]byte]*node
	byAddr map[netip.Addr]*node
	routes routeTable // nil if there are none
	seen   archive

	indexes  indexes
	gateMu   sync.Mutex
	gate     noise.Gate
	homes    homes
	timers   *timers
	staged   atomic.Int64 // bytes waiting for sessions
	drops    drops
	active   active
	stopping chan struct{}
	stop     func()
	done     chan struct{}
	err      error // of Close; set before done is closed
}

var _ Engine = (*Inline)(nil)

// local is a node key of ours. All but the newest are valid only for a while.
type local struct {
	*noise.Local
	private key.NodePrivate
	since   time.Time
	until   time.Time // zero for the newest
	left    bool      // peers still using it were asked to use another
}

const (
	// drainTime is how long a replaced node key stays valid: as long as sessions last.
	drainTime = 180 * time.Second
	// refuseTime is how long before its end an old key accepts no more initiations. leaveTime is how long before its end we
	// initiate handshakes with the newest key to peers that still use the old one because they have not learned of the new. In
	// between, a session becomes old enough to be replaced, and the remaining time allows for more than one attempt.
	refuseTime = 20 * time.Second
	leaveTime  = 14 * time.Second
	// maxLocals and maxRemotes are how many node keys we and a peer may have.
	maxLocals  = 8
	maxRemotes = 4
)

// NewInline returns an engine for the node self between d and b, both of which it owns from then on. It does nothing until
// configured. Neither of them may call the engine's methods from its own: the engine holds its locks meanwhile.
func NewInline(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) *Inline {
	return newInline(self, d, b, log, time.Now)
}

func newInline(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger, now func() time.Time) *Inline {
	e := &Inline{
		self: self, tun: d, bind: b, log: log, now: now,
		nodes: map[proto.NodeID]*node{}, byKey: map[[32]byte]*node{}, byAddr: map[netip.Addr]*node{},
		indexes: indexes{all: map[uint32]entry{}}, timers: newTimers(), active: active{all: map[*node]struct{}{}},
		homes: homes{all: map[netip.Addr]int{}}, stopping: make(chan struct{}), done: make(chan struct{}),
	}
	e.gate.Known = e.homes.has
	e.stop = sync.OnceFunc(func() { close(e.stopping) })
	e.readMTU()
	var tasks sync.WaitGroup
	tasks.Go(e.watchDevice)
	e.startReading(&tasks)
	tasks.Go(e.runTimers)
	go e.reap(&tasks)
	return e
}

// reap waits for the engine to be stopped, then tears everything down.
func (e *Inline) reap(tasks *sync.WaitGroup) {
	<-e.stopping
	e.api.Lock()
	defer e.api.Unlock()
	e.mu.Lock()
	e.closed = true
	for _, n := range e.nodes {
		e.unplug(n)
	}
	e.port, e.locals = 0, nil
	e.mu.Unlock()
	err := e.tun.Close()
	e.open = false
	e.err = errors.Join(err, e.bind.Close())
	e.recv.Wait()
	tasks.Wait()
	close(e.done)
}

// Done implements Engine.
func (e *Inline) Done() <-chan struct{} { return e.done }

// Close implements Engine.
func (e *Inline) Close() error {
	e.stop()
	<-e.done
	return e.err
}

// ended returns ErrClosed if the engine is closed. The caller holds mu.
func (e *Inline) ended() error {
	select {
	case <-e.stopping:
		return ErrClosed
	default:
	}
	if e.closed {
		return ErrClosed
	}
	return nil
}

// Configure implements Engine.
func (e *Inline) Configure(private key.NodePrivate, port uint16) error {
	e.api.Lock()
	defer e.api.Unlock()
	if err := e.setPrivate(private, func(l *local) []*local { return []*local{l} }); err != nil {
		return fmt.Errorf("configure WireGuard: %w", err)
	}
	if e.open && e.asked == port {
		return nil
	}
	if err := e.listen(port); err != nil {
		return fmt.Errorf("configure WireGuard: %w", err)
	}
	return nil
}

// RotateLocalKey implements Engine.
func (e *Inline) RotateLocalKey(private key.NodePrivate) error {
	e.api.Lock()
	defer e.api.Unlock()
	err := e.setPrivate(private, func(l *local) []*local {
		list := []*local{l}
		for i, old := range e.locals {
			if i == 0 {
				old.until = e.now().Add(drainTime)
			}
			if old.Public() != l.Public() && len(list) < maxLocals {
				list = append(list, old)
			}
		}
		return list
	})
	if err != nil {
		return fmt.Errorf("change the node key: %w", err)
	}
	e.timers.poke()
	return nil
}

// setPrivate makes private the newest key, unless it already is; list returns the keys to keep, given the new one.
func (e *Inline) setPrivate(private key.NodePrivate, list func(*local) []*local) error {
	if private.IsZero() {
		return errors.New("no node key")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ended(); err != nil {
		return err
	}
	l, err := noise.NewLocal(private.Expose())
	if err != nil {
		return err
	}
	if len(e.locals) > 0 && e.locals[0].Public() == l.Public() {
		return nil
	}
	if n := e.byKey[l.Public()]; n != nil {
		return fmt.Errorf("peer %s has the same node key", n.id)
	}
	e.setLocals(list(&local{Local: l, private: private, since: e.now()}))
	return nil
}

// local returns our key with this public part, or nil. The caller holds mu.
func (e *Inline) local(public [32]byte) *local {
	for _, l := range e.locals {
		if l.Public() == public {
			return l
		}
	}
	return nil
}

// setLocals changes our keys, and with them the pairs of all awake peers. The caller holds mu for writing.
func (e *Inline) setLocals(list []*local) {
	e.locals = list
	now := e.now()
	for _, n := range e.nodes {
		n.mu.Lock()
		if n.peer != nil {
			e.pairUp(n, list, n.remotes, now)
		} else if n.cfg.Keepalive > 0 {
			e.wake(n, now)
		}
		e.settle(n)
		n.mu.Unlock()
	}
}

// drain drops our expired keys, and returns when it must run next.
func (e *Inline) drain(now time.Time) (next time.Time) {
	e.mu.RLock()
	next = firstToGo(e.locals)
	e.mu.RUnlock()
	if next.IsZero() || now.Before(next) {
		return next
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.locals {
		if !l.left && !l.until.IsZero() && !now.Before(l.until.Add(-leaveTime)) {
			e.leave(l, now)
		}
	}
	left := slices.DeleteFunc(slices.Clone(e.locals), func(l *local) bool { return !l.until.IsZero() && !now.Before(l.until) })
	if len(left) < len(e.locals) {
		e.setLocals(left)
	}
	return firstToGo(e.locals)
}

// leave initiates handshakes with the newest key to peers that still use our old key l. The caller holds mu for writing.
func (e *Inline) leave(l *local, now time.Time) {
	l.left = true
	for _, n := range e.active.list() {
		n.mu.Lock()
		if n.peer != nil {
			e.step(n, now, session.Leave{Local: l.Local})
			e.settle(n)
		}
		n.mu.Unlock()
	}
}

// firstToGo returns when the first of our keys must be dropped or left; zero means never.
func firstToGo(list []*local) (next time.Time) {
	for _, l := range list {
		at := l.until
		if !at.IsZero() && !l.left {
			at = at.Add(-leaveTime)
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// refuses reports whether the key no longer accepts initiations.
func (l *local) refuses(now time.Time) bool {
	return !l.until.IsZero() && !now.Before(l.until.Add(-refuseTime))
}

// listen reopens the sockets. The caller holds api.
func (e *Inline) listen(port uint16) error {
	e.open, e.asked = false, port
	e.setPort(0)
	if err := e.bind.Close(); err != nil {
		return err
	}
	e.recv.Wait()
	actual, err := e.startReceiving(port)
	if err != nil {
		return err
	}
	e.open = true
	e.setPort(actual)
	return nil
}

// startReading starts the goroutines that read the device.
func (e *Inline) startReading(tasks *sync.WaitGroup) {
	if runs, ok := bind.AsRuns(e.bind); ok {
		if queues := tun.Supers(e.tun); len(queues) > 0 {
			e.runs = runs
			for _, q := range queues {
				tasks.Go(func() { e.readSupers(q) })
			}
			return
		}
	}
	tasks.Go(e.readDevice)
}

// startReceiving opens the sockets and starts the goroutines that read them.
func (e *Inline) startReceiving(port uint16) (actual uint16, err error) {
	if e.runs != nil {
		fns, actual, err := e.runs.OpenRuns(port)
		for _, fn := range fns {
			e.recv.Go(func() { e.receiveRuns(fn) })
		}
		return actual, err
	}
	fns, actual, err := e.bind.Open(port)
	for _, fn := range fns {
		e.recv.Go(func() { e.receive(fn) })
	}
	return actual, err
}

func (e *Inline) setPort(port uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.port = port
}

// Rebind implements Engine.
func (e *Inline) Rebind() error {
	e.api.Lock()
	defer e.api.Unlock()
	e.mu.RLock()
	err := e.ended()
	e.mu.RUnlock()
	if err != nil {
		return err
	}
	if err := e.listen(e.asked); err != nil {
		return fmt.Errorf("open the UDP sockets anew: %w", err)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, n := range e.nodes {
		n.mu.Lock()
		if n.endpoint != nil { // the source address may be why the sockets were reopened
			n.endpoint.ClearSrc()
		}
		n.mu.Unlock()
	}
	return nil
}

// Port implements Engine.
func (e *Inline) Port() (uint16, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.port, e.ended()
}

// watchDevice follows the device's MTU until the device closes.
func (e *Inline) watchDevice() {
	for ev := range e.tun.Events() {
		if ev&tun.EventMTUUpdate != 0 {
			e.readMTU()
		}
	}
}

func (e *Inline) readMTU() {
	mtu, err := e.tun.MTU()
	if err != nil || mtu <= 0 || mtu > maxContent {
		mtu = tun.DefaultMTU
	}
	e.mtu.Store(int64(mtu))
}

// indexes maps the numbers by which peers name handshakes and sessions to their owners.
type indexes struct {
	mu  sync.RWMutex
	all map[uint32]entry
}

// reserve allocates a free number.
func (x *indexes) reserve(n *node) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails
		i := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		if _, taken := x.all[i]; !taken {
			x.all[i] = entry{node: n}
			return i
		}
	}
}

func (x *indexes) set(i uint32, v entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all[i] = v
}

func (x *indexes) release(i uint32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.all, i)
}

func (x *indexes) find(i uint32) entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.all[i]
}
