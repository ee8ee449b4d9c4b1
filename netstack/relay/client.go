package relay

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

const (
	// inUse is how long a relay that is not home is kept after the last packet through it.
	inUse = 2 * time.Minute
	// remeasure is how often the round trips to all relays are measured.
	remeasure = 10 * time.Minute
	// settling is how long to wait for answers of all relays before choosing the first home among those that answered.
	settling = 400 * time.Millisecond
	// headStart is how long UDP alone is tried before a stream is tried as well.
	headStart = 300 * time.Millisecond
	// pending is how many bytes may wait for a session with a relay.
	pending = 256 << 10
	// resolveAgain is how often the names of relays are looked up.
	resolveAgain = 5 * time.Minute
)

// Config is what a client needs.
type Config struct {
	Self proto.NodeID
	// Certificate returns the node's certificate, with its device key as the private key; it is called for each session.
	Certificate func() *tls.Certificate
	// Send sends a run of messages, of size bytes each but the last, from the socket used to reach peers.
	Send func(run []byte, size int, to netip.AddrPort) error
	// Open opens a stream to a relay, with the Upgrade to relaymsg.Protocol done and the relay's identity verified.
	Open func(ctx context.Context, relay *proto.Relay) (net.Conn, error)
	// Resolve resolves a host name; if nil, only literal addresses are reached over UDP.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Changed is called when States or Home have changed. It must not block. May be nil.
	Changed func()
	// Unreached is called when a relay does not deliver packets to a peer. It must not block. May be nil.
	Unreached func(via bind.Via, reason relaymsg.Reason)
	Rand      io.Reader
	Log       *slog.Logger
}

// Transport is how a relay is reached.
type Transport uint8

// The transports.
const (
	None Transport = iota
	UDP
	TLS
)

func (t Transport) String() string { return [...]string{"none", "udp", "tls"}[t] }

// State is the state of one relay.
type State struct {
	Relay     proto.Relay
	Transport Transport
	Since     time.Time // of the transport
	RTT       time.Duration
	// Seen is this node's address as the relay sees it; zero if unknown.
	Seen netip.AddrPort
	Home bool
	// Addrs are the possible addresses of its UDP port, as far as known.
	Addrs []netip.AddrPort
	// Draining means that the relay is about to stop.
	Draining bool
	Err      error // the last one, if there is no transport
}

// Client is a node's client of all its relays. It implements bind.Carrier.
type Client struct {
	cfg    Config
	chance chances
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
	kick   chan struct{}
	inbox  chan *frame

	table atomic.Pointer[map[proto.NodeID]*hop]
	// sessions maps the number of a session to its route.
	sessionsMu sync.RWMutex
	sessions   map[uint32]*route

	mu     sync.Mutex
	closed bool
	home   proto.NodeID
	lost   bool      // no relay answers: the first that does may become home
	since  time.Time // when the relays were set
	gauge  time.Time // when round trips were last requested
}

var _ bind.Carrier = (*Client)(nil)

// hop is one relay. All but the atomic fields are guarded by the client's lock.
type hop struct {
	link
	client *Client

	route  atomic.Pointer[route]  // over UDP; nil if there is none
	stream atomic.Pointer[runner] // nil if there is none
	usedAt atomic.Int64           // time of the last packet sent, in Unix nanoseconds

	since      time.Time
	dialing    context.CancelFunc // nil unless a stream is open or being opened
	redial     time.Time
	streams    int // failures
	streamErr  error
	streamSeen netip.AddrPort
	resolved   time.Time
	lookingUp  bool

	waitMu  sync.Mutex
	waits   []*parcel // for a session, oldest first
	waiting int
}

// parcel is a waiting run.
type parcel struct {
	peer proto.NodeID
	size int
	b    []byte
}

// New returns a client without relays. The caller must Close it.
func New(c Config) *Client {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	x := &Client{cfg: c, chance: chances{c.Rand}, kick: make(chan struct{}, 1), inbox: make(chan *frame, 64), sessions: map[uint32]*route{}}
	x.table.Store(&map[proto.NodeID]*hop{})
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.all.Go(x.run)
	return x
}

// Close leaves all relays and waits.
func (c *Client) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		for _, h := range *c.table.Load() {
			c.drop(h)
		}
	}
	c.mu.Unlock()
	c.cancel()
	c.all.Wait()
	return nil
}

// drop leaves a relay. The caller holds the lock.
func (c *Client) drop(h *hop) {
	if h.cur != nil {
		bye := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Bye, Session: h.cur.session}}
		c.do(h, []effect{send{h.cur.addr, relaymsg.Append(nil, bye, h.cur.key, false)}})
		h.cur = nil
		c.lose(h)
	}
	h.hangUp()
}

// SetRelays sets the relays. Sessions with unchanged relays continue.
func (c *Client) SetRelays(relays []proto.Relay) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	old := *c.table.Load()
	next := make(map[proto.NodeID]*hop, len(relays))
	now := time.Now()
	for i := range relays {
		r := relays[i]
		if h := old[r.ID]; h != nil && h.relay.Equal(&r) {
			next[r.ID] = h
			continue
		}
		h := &hop{client: c, link: link{relay: r, measure: true}}
		h.addrs = literal(&r)
		next[r.ID] = h
	}
	for id, h := range old {
		if next[id] != h {
			c.drop(h)
		}
	}
	c.table.Store(&next)
	if len(old) == 0 {
		c.since = now
	}
	c.wake()
}

// literal returns the addresses of a relay that are known without a lookup.
func literal(r *proto.Relay) (out []netip.AddrPort) {
	if r.UDPPort == 0 {
		return nil
	}
	for _, a := range r.UDP {
		out = append(out, netip.AddrPortFrom(a, r.UDPPort))
	}
	if len(out) > 0 {
		return out
	}
	for _, h := range hosts(r) {
		if a, err := netip.ParseAddr(h); err == nil {
			out = append(out, netip.AddrPortFrom(a.Unmap(), r.UDPPort))
		}
	}
	return out
}

// hosts returns the host names in a relay's URLs.
func hosts(r *proto.Relay) (out []string) {
	for _, s := range r.URLs {
		if u, err := url.Parse(s); err == nil && !slices.Contains(out, u.Hostname()) {
			out = append(out, u.Hostname())
		}
	}
	return out
}

// Moved reports that this node's address may have changed, or that the socket was reopened: sessions move along.
func (c *Client) Moved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, h := range *c.table.Load() {
		c.sync(h)
		c.do(h, h.Step(now, moved{}, c.chance))
		h.redial, h.streams, h.resolved = time.Time{}, 0, time.Time{}
		if h.stream.Load() != nil {
			h.hangUp() // TCP would notice much later
		}
		h.measure = h.cur == nil
	}
	c.wake()
}

// Stir pings a relay, or all if relay is 0, that has a session: it tells the relay where this node is, and checks that the
// session is alive.
func (c *Client) Stir(relay proto.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, h := range *c.table.Load() {
		if relay == 0 || relay == id {
			c.sync(h)
			c.do(h, h.Step(time.Now(), stirred{}, c.chance))
		}
	}
	c.wake()
}

// Warm prepares a session with a relay, since packets will soon go through it.
func (c *Client) Warm(relay proto.NodeID) {
	if h := (*c.table.Load())[relay]; h != nil {
		h.usedAt.Store(time.Now().UnixNano())
		c.wake()
	}
}

// Home returns the relay through which others reach this node; false if there is none.
func (c *Client) Home() (proto.NodeID, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.home, c.home != 0
}

// States returns the states of all relays, sorted by ID.
func (c *Client) States() []State {
	c.mu.Lock()
	defer c.mu.Unlock()
	table := *c.table.Load()
	out := make([]State, 0, len(table))
	for id, h := range table {
		s := State{
			Relay: h.relay, RTT: h.rtt, Addrs: slices.Clone(h.addrs), Home: id == c.home, Since: h.since, Draining: !h.drains.IsZero(),
			Err: cmp.Or(h.err, h.streamErr), // UDP's first
		}
		switch {
		case h.cur != nil:
			s.Transport, s.Seen, s.Err = UDP, h.cur.seen, nil
		case h.stream.Load() != nil:
			s.Transport, s.Seen, s.Err = TLS, h.streamSeen, nil
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b State) int { return cmp.Compare(a.Relay.ID, b.Relay.ID) })
	return out
}

func (c *Client) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run calls tick whenever a timer fires or something has changed.
func (c *Client) run() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.kick:
		case <-t.C:
		}
		t.Reset(c.tick(time.Now()))
	}
}

// tick handles all relays, and returns how long to wait before the next call.
func (c *Client) tick(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	table := *c.table.Load()
	if len(table) == 0 || c.closed {
		return time.Hour
	}
	if now.Sub(c.gauge) >= remeasure {
		c.gauge = now
		for _, h := range table {
			h.measure = h.cur == nil // a session's pings measure as well
		}
	}
	next := c.gauge.Add(remeasure)
	for _, id := range slices.Sorted(maps.Keys(table)) {
		h := table[id]
		used := time.Unix(0, h.usedAt.Load())
		h.want = id == c.home || now.Sub(used) < inUse || c.lost
		c.lookUp(now, h)
		c.sync(h)
		c.do(h, h.Step(now, ticked{}, c.chance))
		c.tendStream(now, h)
		for _, at := range []time.Time{h.due(), c.lookUpDue(h), h.streamDue(now), h.watch(now, used)} {
			if !at.IsZero() && at.Before(next) {
				next = at
			}
		}
	}
	if at := c.chooseHome(now); !at.IsZero() && at.Before(next) {
		next = at
	}
	return max(next.Sub(now), time.Millisecond)
}

// watch returns when to look again at a relay in use: the code that moves packets does not wake the client.
func (h *hop) watch(now, used time.Time) time.Time {
	switch unused := now.Sub(used); {
	case h.route.Load() != nil && unused <= 2*suspect:
		return now.Add(suspect)
	case h.stream.Load() != nil && unused < inUse:
		return used.Add(inUse) // then it may no longer be wanted
	}
	return time.Time{}
}

// chooseHome chooses the home relay, and returns when to choose again.
func (c *Client) chooseHome(now time.Time) time.Time {
	settled := c.since.Add(settling)
	table := *c.table.Load()
	open := false
	all := make([]candidate, 0, len(table))
	for id, h := range table {
		open = open || (h.measured.IsZero() && h.err == nil && h.streamErr == nil && h.relay.UDPPort != 0)
		all = append(all, candidate{id: id, health: h.health(), rtt: h.rtt})
	}
	if open && c.home == 0 && now.Before(settled) {
		return settled
	}
	if lost := len(all) > 0 && !slices.ContainsFunc(all, func(x candidate) bool { return x.health != dead }); lost != c.lost {
		c.lost = lost
		c.wake()
	}
	if home := choose(c.home, all); home != c.home {
		c.home = home
		if home == 0 {
			c.cfg.Log.Info("no home relay")
		} else {
			c.cfg.Log.Info("home relay", "relay", home)
		}
		c.changed()
		c.wake()
	}
	return time.Time{}
}

func (h *hop) health() health {
	byStream := len(h.relay.URLs) > 0 && h.client.cfg.Open != nil
	switch {
	case !h.drains.IsZero():
		return dead
	case h.cur != nil || h.stream.Load() != nil:
		return healthy
	case h.err == nil && len(h.addrs) > 0 && (h.streamErr == nil || !h.measured.IsZero()):
		return healthy
	case h.err == nil && len(h.addrs) > 0, byStream && h.streamErr == nil:
		return unsure
	}
	return dead
}

func (c *Client) changed() {
	if c.cfg.Changed != nil {
		c.cfg.Changed()
	}
}

// lookUpDue returns when the addresses of a relay that is known by name should be resolved.
func (c *Client) lookUpDue(h *hop) time.Time {
	if c.cfg.Resolve == nil || h.relay.UDPPort == 0 || len(h.relay.UDP) > 0 || h.lookingUp {
		return time.Time{}
	}
	if h.cur != nil || !(h.want || h.measure) {
		return time.Time{}
	}
	return h.resolved.Add(resolveAgain)
}

// lookUp resolves the addresses of a relay, if that is due.
func (c *Client) lookUp(now time.Time, h *hop) {
	if at := c.lookUpDue(h); at.IsZero() || now.Before(at) {
		return
	}
	h.lookingUp = true
	c.all.Go(func() {
		var found []netip.AddrPort
		for _, host := range hosts(&h.relay) {
			if _, err := netip.ParseAddr(host); err == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
			ips, err := c.cfg.Resolve(ctx, host)
			cancel()
			if err != nil {
				c.cfg.Log.Debug("relay's name is not found", "relay", h.relay.ID, "host", host, "err", err)
			}
			for _, a := range ips {
				found = append(found, netip.AddrPortFrom(a.Unmap().WithZone(""), h.relay.UDPPort))
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		h.lookingUp, h.resolved = false, time.Now()
		c.wake()
		addrs := append(literal(&h.relay), found...)
		if slices.Equal(addrs, h.addrs) {
			return
		}
		h.addrs, h.next = addrs[:min(len(addrs), proto.MaxRelayAddrs)], time.Time{}
	})
}

// sync updates the link with what was sent and heard since the last call.
func (c *Client) sync(h *hop) {
	r := h.route.Load()
	if r == nil || h.cur == nil || r.session != h.cur.session {
		return
	}
	h.cur.sent, h.cur.asked = time.Unix(0, h.usedAt.Load()), time.Unix(0, r.asked.Load())
	if heard := time.Unix(0, r.heard.Load()); heard.After(h.cur.heard) {
		h.cur.heard = heard
	}
}

// do carries out the effects of a link. The caller holds the lock.
func (c *Client) do(h *hop, effects []effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case send:
			if err := c.cfg.Send(e.b, len(e.b), e.to); err != nil {
				c.cfg.Log.Debug("cannot send to a relay", "relay", h.relay.ID, "to", e.to, "err", err)
			}
		case sign:
			c.all.Go(func() { c.sign(h, e) })
		case opened:
			c.open(h)
		case lost:
			c.lose(h)
		case gauged, leave:
			c.changed()
			c.wake()
		case unreachable:
			if c.cfg.Unreached != nil {
				c.cfg.Unreached(bind.Via{Relay: h.relay.ID, Peer: e.peer}, e.reason)
			}
		}
	}
}

// sign makes the signature that binds a session. A TPM may take its time for that.
func (c *Client) sign(h *hop, e sign) {
	out := signed{session: e.session}
	out.info, out.key, out.err = c.bindInfo(h.relay.ID, e)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.do(h, h.Step(time.Now(), out, c.chance))
	c.wake()
}

func (c *Client) bindInfo(relay proto.NodeID, e sign) (relaymsg.BindInfo, *relaymsg.Key, error) {
	certificate := c.cfg.Certificate()
	if certificate == nil || len(certificate.Certificate) == 0 {
		return relaymsg.BindInfo{}, nil, errors.New("relay: this node has no certificate")
	}
	signer, ok := certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return relaymsg.BindInfo{}, nil, errors.New("relay: this node's key cannot sign")
	}
	leaf := certificate.Certificate[0]
	transcript := relaymsg.Transcript(relay, e.key, e.secret.Public(), e.session, leaf)
	signature, err := signer.Sign(c.cfg.Rand, transcript[:], crypto.SHA256)
	if err != nil {
		return relaymsg.BindInfo{}, nil, fmt.Errorf("sign for relay %s: %w", relay, err)
	}
	key, err := e.secret.Agree(e.key, transcript)
	return relaymsg.BindInfo{RelayKey: e.key, Ephemeral: e.secret.Public(), Certificate: leaf, Signature: signature}, key, err
}

// open starts using a session.
func (c *Client) open(h *hop) {
	r := h.route.Load()
	if r == nil || r.session != h.cur.session {
		fresh := newRoute(h, h.cur)
		c.sessionsMu.Lock()
		if r != nil {
			delete(c.sessions, r.session)
		}
		c.sessions[fresh.session] = fresh
		c.sessionsMu.Unlock()
		h.route.Store(fresh)
		if r == nil {
			h.since = time.Now()
		}
		h.hangUp()
		c.flush(h)
	}
	c.changed()
	c.wake()
}

// lose stops using a session.
func (c *Client) lose(h *hop) {
	if r := h.route.Swap(nil); r != nil {
		c.sessionsMu.Lock()
		delete(c.sessions, r.session)
		c.sessionsMu.Unlock()
	}
	h.since = time.Time{}
	c.changed()
	c.wake()
}

// chances is the source of randomness.
type chances struct{ r io.Reader }

func (c chances) Uint64() uint64 {
	var b [8]byte
	_, _ = io.ReadFull(c.r, b[:]) // for a session's number, or a token: zeros do no harm
	return binary.BigEndian.Uint64(b[:])
}

func (c chances) Float64() float64 { return float64(c.Uint64()>>11) / (1 << 53) }

func (c chances) Secret() *relaymsg.Secret {
	s, err := relaymsg.NewSecret(c.r)
	if err != nil {
		return nil
	}
	return s
}
