package bind

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/path"
)

// Sockets is what finally moves datagrams: the system's sockets, or simulated ones.
type Sockets = conn.Bind

// Config is what a Bind needs to know.
type Config struct {
	// Inner moves the packets; nil means the system's UDP sockets, Readers of them per address family, at least one.
	Inner   conn.Bind
	Readers int
	// Bounds restricts the addresses that peers may have.
	Bounds path.Bounds
	// Mark is set on the sockets, so that routing keeps their packets out of the tunnel; 0 sets none.
	Mark uint32
}

// Bind implements conn.Bind.
type Bind struct {
	cfg Config
	// generation grows when interned endpoints must be recreated.
	generation atomic.Uint64
	bounds     atomic.Pointer[path.Bounds]
	once       *once
	handler    Handler // nil if there is none, like carrier
	carrier    Carrier

	relayedMu sync.RWMutex
	relayed   map[Via]*Endpoint
	plainMu   sync.Mutex
	plain     map[netip.AddrPort]conn.Endpoint // for messages not sent to a peer

	extras extras

	mu   sync.Mutex
	shut func() // ends receiving from relays and extra sockets; nil if there are none
	port uint16 // of the last Open
	mark uint32
}

var _ conn.Bind = (*Bind)(nil)

// New returns a Bind that is not open yet.
func New(cfg Config) *Bind {
	if cfg.Inner == nil {
		cfg.Inner = System(cfg.Readers)
	}
	b := &Bind{cfg: cfg, mark: cfg.Mark, once: newOnce()}
	b.bounds.Store(&cfg.Bounds)
	return b
}

// SetBounds changes the bounds of the addresses that peers may have.
func (b *Bind) SetBounds(bounds path.Bounds) {
	b.bounds.Store(&bounds)
	b.generation.Add(1)
}

// ForgetSources lets the system choose source addresses again for each peer. Call it when this host's addresses or routes have
// changed.
func (b *Bind) ForgetSources() { b.generation.Add(1) }

// Open opens the sockets. Port 0 means the port of the last Open, if it is still free.
func (b *Bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, actual, closed, err := openAs(b, port, b.cfg.Inner.Open)
	for i, fn := range fns {
		fns[i] = b.receive(fn)
	}
	if err == nil {
		for _, fn := range b.besides(closed) {
			fns = append(fns, unpack(fn))
		}
	}
	return fns, actual, err
}

// openAs opens the sockets with one of the inner Bind's Open functions. If there are relays or extra sockets, closing closed
// ends receiving from them.
func openAs[F any](b *Bind, port uint16, open func(uint16) ([]F, uint16, error)) (fns []F, actual uint16, closed chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err = error(syscall.EADDRINUSE)
	if port == 0 && b.port != 0 {
		fns, actual, err = open(b.port)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		fns, actual, err = open(port)
	}
	if err != nil {
		return nil, 0, nil, fmt.Errorf("listen on UDP port %d: %w", port, err)
	}
	if b.mark != 0 {
		if err := b.cfg.Inner.SetMark(b.mark); err != nil {
			return nil, 0, nil, errors.Join(fmt.Errorf("set mark %#x on the UDP sockets: %w", b.mark, err), b.cfg.Inner.Close())
		}
	}
	b.port = actual
	b.generation.Add(1)
	if b.carrier != nil || b.handler != nil {
		closed = make(chan struct{})
		b.shut = sync.OnceFunc(func() { close(closed) })
	}
	return fns, actual, closed, nil
}

// Close closes the sockets; the functions returned by Open then return net.ErrClosed.
func (b *Bind) Close() error {
	b.mu.Lock()
	if b.shut != nil {
		b.shut()
	}
	b.mu.Unlock()
	return errors.Join(b.shutExtras(), b.cfg.Inner.Close())
}

// SetMark changes the mark of the sockets.
func (b *Bind) SetMark(mark uint32) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mark = mark
	return b.cfg.Inner.SetMark(mark)
}

// BatchSize returns the inner Bind's batch size.
func (b *Bind) BatchSize() int { return b.cfg.Inner.BatchSize() }

// ParseEndpoint parses the text form of candidates into an Endpoint.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	list, _, err := ParseText(s)
	if err != nil {
		return nil, err
	}
	bounds := b.bounds.Load()
	all := make([]*Endpoint, len(list))
	for i, a := range list {
		if err := bounds.Check(a); err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		all[i] = &Endpoint{bind: b, dst: a}
	}
	return &Endpoint{bind: b, dst: list[0], others: all[1:], unknown: true}, nil
}

// The types and sizes of the WireGuard messages that matter here.
const (
	typeInitiation = 1
	typeTransport  = 4
	sizeInitiation = 148
	sizeKeepalive  = 32
)

// forAll reports whether a message should go to all candidates: messages that the peer answers, or that update the peer's idea
// of where we are, and that do no harm if they arrive twice.
func forAll(msg []byte) bool {
	return isInitiation(msg) || (len(msg) == sizeKeepalive && binary.LittleEndian.Uint32(msg) == typeTransport)
}

func isInitiation(msg []byte) bool {
	return len(msg) == sizeInitiation && binary.LittleEndian.Uint32(msg) == typeInitiation
}

// Send sends messages to a peer.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if c, ok := ep.(*Course); ok && c.bind == b && len(bufs) > 0 {
		return c.send(bufs)
	}
	e, ok := ep.(*Endpoint)
	if !ok || e.bind != b {
		return conn.ErrWrongEndpointType
	}
	if len(e.others) == 0 || len(bufs) != 1 || !forAll(bufs[0]) {
		return b.sendTo(bufs, e)
	}
	errs := []error{b.sendTo(bufs, e)}
	for _, o := range e.others {
		errs = append(errs, b.sendTo(bufs, o))
	}
	if slices.Contains(errs, nil) {
		return nil
	}
	return fmt.Errorf("no candidate can be sent to: %w", errors.Join(errs...))
}

func (b *Bind) sendTo(bufs [][]byte, e *Endpoint) error {
	if e.via != (Via{}) {
		for _, msg := range bufs {
			if err := b.carry(msg, len(msg), e); err != nil {
				return err
			}
		}
		return nil
	}
	inner, sourced, err := e.inner()
	if err != nil {
		return err
	}
	out, err := b.through(e)
	if err != nil {
		return err
	}
	err = out.Send(bufs, inner)
	if err == nil || !sourced || !lostSource(err) {
		return err
	}
	// The source address is no longer ours: any other will do. Messages that were already sent are sent twice, and the peer
	// drops them as replays.
	e.ClearSrc()
	if inner, _, err = e.inner(); err != nil {
		return err
	}
	return out.Send(bufs, inner)
}

// lostSource reports whether a send failed as it does when the source address or its interface is gone.
func lostSource(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.ENODEV) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH)
}

// receive wraps one of the inner Bind's functions, which is called by one goroutine.
func (b *Bind) receive(fn conn.ReceiveFunc) conn.ReceiveFunc {
	t := &table{bind: b}
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, err := fn(bufs, sizes, eps)
		for i := range n {
			if sizes[i] == 0 {
				continue
			}
			e, msg := t.intern(eps[i]), bufs[i][:sizes[i]]
			if e.refused {
				sizes[i] = 0
				continue
			}
			if b.relayedMessage(msg) {
				msg, _, e = b.unwrap(msg, len(msg), e)
			}
			if sizes[i] = len(b.sift(msg, len(msg), e)); sizes[i] > 0 {
				eps[i] = e
			}
		}
		return n, err
	}
}

// maxInterned bounds how many endpoints one socket remembers; beyond that it starts over.
const maxInterned = 4096

// table holds one Endpoint for each pair of source and destination addresses of received packets.
type table struct {
	bind       *Bind
	extra      *extra // the socket it belongs to; nil for those shared by all peers
	generation uint64
	last       *Endpoint // most packets come from the same place as the one before
	all        map[pair]*Endpoint
}

type pair struct {
	dst     netip.AddrPort
	src     netip.Addr
	ifindex int32
}

func (t *table) intern(ep conn.Endpoint) *Endpoint {
	p := pairOf(ep)
	generation := t.bind.generation.Load()
	if t.all == nil || t.generation != generation || len(t.all) >= maxInterned {
		t.all, t.last, t.generation = map[pair]*Endpoint{}, nil, generation
	}
	if e := t.last; e != nil && e.dst == p.dst && e.src == p.src && e.ifindex == p.ifindex && !e.forgotten.Load() {
		return e
	}
	e := t.all[p]
	if e == nil || e.forgotten.Load() {
		e = &Endpoint{
			bind: t.bind, dst: p.dst, extra: t.extra, sourced: ep, src: p.src, ifindex: p.ifindex, generation: generation,
			refused: t.bind.refuses(p.dst.Addr()),
		}
		t.all[p] = e
	}
	t.last = e
	return e
}

// refuses reports whether packets from a cannot come from a peer, no matter who sealed them.
func (b *Bind) refuses(a netip.Addr) bool {
	return slices.ContainsFunc(b.bounds.Load().Overlay, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// pairOf returns the addresses of an inner Bind's endpoint.
func pairOf(ep conn.Endpoint) pair {
	p := pair{src: ep.SrcIP()}
	if x, ok := ep.(interface{ Port() uint16 }); ok {
		p.dst = netip.AddrPortFrom(ep.DstIP(), x.Port())
	} else {
		p.dst, _ = netip.ParseAddrPort(ep.DstToString()) // zero, which no peer has, if it does not parse
	}
	if x, ok := ep.(interface{ SrcIfidx() int32 }); ok {
		p.ifindex = x.SrcIfidx()
	}
	return p
}
