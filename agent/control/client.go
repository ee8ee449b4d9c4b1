package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	// steady is how long a stream must have lived for its end not to count as a failure.
	steady = 30 * time.Second
	// unasked is how long to stay away from a coordinator that told us not to come back on our own. It or its policy may be
	// fixed in the meantime, and nobody would tell us.
	unasked = 10 * time.Minute
)

// Config holds the package's connections to the outside, and what it tells coordinators about this node.
type Config struct {
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy returns the proxy through which to reach a coordinator; nil: none.
	Proxy func(*url.URL) (*url.URL, error)
	// Now returns mesh time; Heard receives the coordinator's time.
	Now   func() time.Time
	Heard func(server time.Time)
	Rand  *rand.Rand // used only by this package's goroutine

	URLs              []string
	Device            device.Key
	Prover            enroll.Prover // nil: there is none
	Program, Hostname string
	// Facts is called each time the facts are sent.
	Facts func() enroll.Facts

	// Emit delivers an event, or gives up when the context ends. It is called from one goroutine, and not after Close has
	// returned.
	Emit func(context.Context, machine.Event)
}

// Client keeps a stream open. Its methods may be called from any goroutine.
type Client struct {
	cfg    Config
	cancel context.CancelFunc
	done   chan struct{}
	kick   chan struct{}
	out    *outbox
	held   *Held // the first stream, if it is open already; only for run

	mu      sync.Mutex
	self    *identity.Self
	applied proto.Version
	live    *stream                 // nil: none
	abandon context.CancelCauseFunc // gives up the coordinator being dialled; nil: none is
}

// Attach opens a stream for a node that resumes from a version, and keeps one open until Close. If held is not nil, the
// first stream is the one held since the node enrolled.
func Attach(cfg Config, self *identity.Self, applied proto.Version, held *Held) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		cfg: cfg, cancel: cancel, done: make(chan struct{}), kick: make(chan struct{}, 1),
		out: newOutbox(), self: self, applied: applied, held: held.move(),
	}
	go func() {
		defer close(c.done)
		defer c.held.Close()
		c.run(ctx)
	}()
	return c
}

// Close ends the stream and waits for it.
func (c *Client) Close() {
	c.cancel()
	<-c.done
}

// Ack tells the coordinator which version the data path enforces.
func (c *Client) Ack(v proto.Version) { c.out.ack(v) }

// Report tells the coordinator, on this stream and the following ones, where this node can be reached.
func (c *Client) Report(reach proto.Reach, port uint16) { c.out.report(reach, port) }

// Posture tells the coordinator, on this stream and the following ones, what has changed in this machine's health. Complete
// means that everything known has been reported.
func (c *Client) Posture(facts []Fact, complete bool) { c.out.posture(facts, complete) }

// Serve tells the coordinator, on this stream and the following ones, what a relay serves.
func (c *Client) Serve(r proto.Relay) { c.out.serve(r) }

// Renewal is a request for the next certificate.
type Renewal struct {
	Node    key.NodePrivate // the key to come next
	Ticket  []byte          // came with the present certificate
	Talking []proto.NodeID  // the peers that the node has sessions with
}

// Renew asks for the next certificate.
func (c *Client) Renew(r Renewal) { c.out.renew(r) }

// Resume sets the version from which the next stream resumes.
func (c *Client) Resume(v proto.Version) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = v
}

// SetSelf sets the identity that the next stream is opened with.
func (c *Client) SetSelf(self *identity.Self) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.self = self
}

// trusted returns the roots that the identity trusts.
func (c *Client) trusted() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.self.Record.Roots
}

// Redial ends the stream; another one follows.
func (c *Client) Redial(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live.end(errors.New(reason))
	}
}

// errMoved ends whatever was begun from addresses that this host may no longer have.
var errMoved = errors.New("this host's address changed")

// Kick reacts to a change of the network: a client that waits or dials starts dialling at once, and a stream whose local
// address is gone, according to lost, ends.
func (c *Client) Kick(lost func(net.Addr) bool) {
	c.mu.Lock()
	live, abandon := c.live, c.abandon
	c.mu.Unlock()
	if live == nil {
		select {
		case c.kick <- struct{}{}:
		default:
		}
		if abandon != nil {
			abandon(errMoved)
		}
		return
	}
	if lost(live.ch.conn.LocalAddr()) {
		live.end(errMoved)
	}
}

func (c *Client) run(ctx context.Context) {
	var backoff Backoff
	for turn := 0; ctx.Err() == nil; turn++ {
		opened, lived, err := c.attempt(ctx, turn)
		if ctx.Err() != nil {
			return
		}
		var refused *refusedError
		switch {
		case errors.As(err, &refused):
			kind := refused.kind()
			if !refused.told {
				c.cfg.Emit(ctx, machine.Refused{Kind: kind, Message: refused.Error()})
			}
			if kind == machine.RefusedRevoked {
				<-ctx.Done() // the machine decides what becomes of the client
				return
			}
		case opened:
			c.cfg.Emit(ctx, machine.Lost{Reason: err.Error(), Unread: errors.Is(err, wire.ErrMalformed)})
		case !errors.Is(err, errMoved): // else dial again at once from the current address
			c.cfg.Emit(ctx, machine.Trouble{Reason: err.Error()})
		}
		if lived > steady {
			backoff.Reset()
		}
		c.wait(ctx, backoff.Fail(c.cfg.Rand.Float64(), named(err)))
	}
}

func (c *Client) wait(ctx context.Context, pause time.Duration) {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-c.kick:
	}
}

// attempt opens one stream, trying the coordinators from index from on, serves it to its end and returns the cause of that.
// If a held stream fails, that is reported only if the coordinator refused: it may just have waited for too short a time.
func (c *Client) attempt(ctx context.Context, from int) (opened bool, lived time.Duration, err error) {
	c.mu.Lock()
	self, applied := c.self, c.applied
	c.mu.Unlock()
	if ch := c.held.take(); ch != nil {
		var refused *refusedError
		if opened, lived, err = c.goOn(ctx, c.held.coordinator, ch, self, applied); opened || errors.As(err, &refused) || ctx.Err() != nil {
			return opened, lived, err
		}
	}
	certificate, err := cert.TLSCertificate(c.cfg.Device, self.Record.Chain[0], self.Record.Chain[1:]...)
	if err != nil {
		return false, 0, fmt.Errorf("this node's certificate: %w", err)
	}
	ch, coordinator, err := c.dial(ctx, from, &certificate, self)
	if err != nil {
		return false, 0, err
	}
	return c.serve(ctx, coordinator, ch, self, applied)
}

// dial opens a channel, unless the network changes in the meantime.
func (c *Client) dial(ctx context.Context, from int, certificate *tls.Certificate, self *identity.Self) (*channel, string, error) {
	ctx, abandon := context.WithCancelCause(ctx)
	defer abandon(nil)
	note := func(f context.CancelCauseFunc) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.abandon = f
	}
	note(abandon)
	defer note(nil)
	return c.cfg.first(ctx, from, certificate, func(chain [][]byte) error {
		_, err := self.Verifier.Coordinator(chain, c.cfg.Now())
		return err
	})
}

// goOn is attempt on a held stream.
func (c *Client) goOn(ctx context.Context, coordinator string, ch *channel, self *identity.Self, applied proto.Version) (opened bool, lived time.Duration, err error) {
	if err := ch.judge(self, c.cfg.Now()); err != nil {
		ch.conn.Close()
		return false, 0, fmt.Errorf("coordinator %s: %w", coordinator, err)
	}
	return c.serve(ctx, coordinator, ch, self, applied)
}

// serve attaches on an open channel and serves the stream to its end.
func (c *Client) serve(ctx context.Context, coordinator string, ch *channel, self *identity.Self, applied proto.Version) (opened bool, lived time.Duration, err error) {
	s := newStream(ctx, c, ch, self)
	c.mu.Lock()
	c.live = s
	c.mu.Unlock()
	begin := time.Now()
	opened, err = s.serve(coordinator, applied)
	c.mu.Lock()
	c.live = nil
	c.mu.Unlock()
	return opened, time.Since(begin), fmt.Errorf("coordinator %s: %w", coordinator, err)
}

// refusedError is a Refusal from a coordinator.
type refusedError struct {
	code    redoubtv1.Refusal_Code
	message string
	final   bool // the coordinator said not to try again
	told    bool // the machine has been told
}

func (e *refusedError) Error() string { return e.message }

// kind returns what a refusal means for a node with a certificate.
func (e *refusedError) kind() machine.Refusal {
	if e.code == redoubtv1.Refusal_CODE_QUARANTINED {
		return machine.RefusedQuarantined
	}
	if e.code == redoubtv1.Refusal_CODE_REVOKED || e.code == redoubtv1.Refusal_CODE_DELETED && e.final {
		return machine.RefusedRevoked
	}
	if e.code == redoubtv1.Refusal_CODE_LOCKED {
		return machine.RefusedLocked
	}
	return machine.RefusedForNow
}

func refused(r *redoubtv1.Refusal) error {
	after := time.Duration(r.GetRetryAfterSeconds()) * time.Second
	e := &refusedError{code: r.GetCode(), message: r.GetMessage(), final: after == 0}
	if e.message == "" {
		e.message = "refused without a reason (" + r.GetCode().String() + ")"
	}
	if e.final {
		after = unasked
	}
	return &retryError{e, min(after, time.Hour)}
}

// Enrol asks for the first certificate until it gets one, is refused for good, or the context ends. It emits Trouble for failures
// after which it tries again. The stream is held for Attach if the coordinator offers that; otherwise the *Held is nil.
func Enrol(ctx context.Context, cfg Config, r enroll.Request) (*identity.Self, *Held, error) {
	var backoff Backoff
	for turn := 0; ; turn++ {
		self, held, err := cfg.enrol(ctx, turn, r)
		if err == nil {
			return self, held, nil
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		var refused *refusedError
		if errors.As(err, &refused) && refused.final || errors.Is(err, cert.ErrPin) {
			return nil, nil, err
		}
		waited := (*waitedError)(nil)
		if errors.As(err, &waited) {
			cfg.Emit(ctx, machine.Trouble{}) // the machine knows why; ask again
			if waited.held > steady {
				backoff.Reset()
			}
		} else {
			cfg.Emit(ctx, machine.Trouble{Reason: err.Error()})
		}
		pause := time.NewTimer(backoff.Fail(cfg.Rand.Float64(), named(err)))
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

func (c Config) enrol(ctx context.Context, from int, r enroll.Request) (*identity.Self, *Held, error) {
	ch, coordinator, err := c.first(ctx, from, nil, func(chain [][]byte) error { return pinned(chain, r.Root, c.Now()) })
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { ch.conn.Close() })
	self, stays, err := c.exchange(ctx, coordinator, ch, r)
	if !stop() || err != nil || !stays {
		ch.conn.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("coordinator %s: %w", coordinator, err)
	}
	if !stays {
		return self, nil, nil
	}
	return self, hold(coordinator, ch), nil
}

// exchange performs a whole enrolment on an open channel. It reports whether the coordinator lets the node stay on the channel.
func (c Config) exchange(ctx context.Context, coordinator string, ch *channel, r enroll.Request) (self *identity.Self, stays bool, err error) {
	x, err := enroll.Enrol(r)
	if err != nil {
		return nil, false, err
	}
	ch.conn.SetDeadline(time.Now().Add(exchangeTimeout))
	if err := ch.write(x.First()); err != nil {
		return nil, false, err
	}
	for {
		down, err := ch.read(maxGreeting)
		if err != nil {
			return nil, false, err
		}
		switch m := down.GetMessage().(type) {
		case *redoubtv1.Down_Challenge:
			c.Heard(time.UnixMilli(m.Challenge.GetServerTime()))
			up, err := x.Answer(m.Challenge, ch.exporter)
			if err != nil {
				return nil, false, err
			}
			if err := ch.send(up); err != nil {
				return nil, false, err
			}
		case *redoubtv1.Down_Result:
			self, err := x.Finish(m.Result)
			return self, m.Result.GetStays(), err
		case *redoubtv1.Down_Refusal:
			return nil, false, refused(m.Refusal)
		case *redoubtv1.Down_Pending:
			p := m.Pending
			c.Emit(ctx, machine.Pending{URL: coordinator, Code: p.GetCode(), Name: p.GetName(), Message: p.GetMessage()})
			return nil, false, ch.wait(p)
		case *redoubtv1.Down_KeepAlive:
		default:
			return nil, false, fmt.Errorf("%w: %T", enroll.ErrOrder, m)
		}
	}
}

// pinned checks a coordinator's chain against the root that a join code named.
func pinned(chain [][]byte, fingerprint [32]byte, at time.Time) error {
	_, err := cert.JoinCoordinator(chain, fingerprint, at)
	if errors.Is(err, cert.ErrPin) {
		return fmt.Errorf("%w: the join code names root %x..., the coordinator shows %s", err, fingerprint[:6], shown(chain))
	}
	return err
}
