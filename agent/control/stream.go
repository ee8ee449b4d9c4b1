package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	// exchangeTimeout is how long a coordinator may take to issue a certificate.
	exchangeTimeout = 60 * time.Second
	// writeTimeout is how long sending a frame may take.
	writeTimeout = 20 * time.Second
	// greetTimeout is how long the coordinator may take to send its welcome.
	greetTimeout = 15 * time.Second
	// grace is how late a keepalive may be.
	grace = 5 * time.Second

	maxGreeting = wire.MaxFrameUnauthenticated
)

// Limits on the keepalive interval that a coordinator may ask for.
const (
	keepAliveMin = 5 * time.Second
	keepAliveMax = 5 * time.Minute
)

// read waits for the next message.
func (ch *channel) read(limit int) (*redoubtv1.Down, error) {
	frame, err := wire.ReadFrame(ch.r, nil, limit)
	if err != nil {
		return nil, err
	}
	return wire.DecodeDown(frame)
}

// write sends an encoded message.
func (ch *channel) write(message []byte) error {
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message)))
	_, err := ch.conn.Write(append(frame, message...))
	return err
}

func (ch *channel) send(up *redoubtv1.Up) error {
	frame, err := wire.AppendFrame(nil, up)
	if err != nil {
		return err
	}
	_, err = ch.conn.Write(frame)
	return err
}

// stream is the open stream of a node with a certificate.
type stream struct {
	ctx  context.Context // the client's
	c    *Client
	ch   *channel
	self *identity.Self

	snapshot wire.NetmapAssembler
	delta    wire.DeltaAssembler

	deadline *time.Timer   // of the latest renewal; nil: there was none
	asked    chan struct{} // holds a value when the coordinator's keepalive should be answered

	once  sync.Once
	cause error // why the stream ended; set once
	ended chan struct{}
}

func newStream(ctx context.Context, c *Client, ch *channel, self *identity.Self) *stream {
	return &stream{ctx: ctx, c: c, ch: ch, self: self, asked: make(chan struct{}, 1), ended: make(chan struct{})}
}

// end ends the stream; the first cause counts.
func (s *stream) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
		s.ch.conn.Close()
	})
}

// serve runs the stream to its end, and reports whether the coordinator had welcomed us.
func (s *stream) serve(coordinator string, applied proto.Version) (opened bool, err error) {
	stop := context.AfterFunc(s.ctx, func() { s.end(s.ctx.Err()) })
	defer stop()
	keepAlive, err := s.greet(coordinator, applied)
	if err != nil {
		s.end(err)
		return false, s.cause
	}
	var writer sync.WaitGroup
	writer.Go(func() {
		if err := s.write(keepAlive); err != nil {
			s.end(err)
		}
	})
	err = s.read(2*keepAlive + grace)
	s.end(err)
	writer.Wait()
	if s.deadline != nil {
		s.deadline.Stop()
	}
	return true, s.cause
}

// greet sends hello and waits for the welcome.
func (s *stream) greet(coordinator string, applied proto.Version) (keepAlive time.Duration, err error) {
	hello := enroll.Hello(s.c.cfg.Program, s.c.cfg.Hostname, s.c.cfg.facts())
	attach := &redoubtv1.Attach{}
	if !applied.IsZero() {
		attach.Applied = wire.FromVersion(applied)
	}
	hello.Purpose = &redoubtv1.Hello_Attach{Attach: attach}
	s.ch.conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := s.ch.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
		return 0, err
	}
	down, err := s.ch.read(maxGreeting)
	if err != nil {
		return 0, err
	}
	s.ch.conn.SetDeadline(time.Time{})
	switch m := down.GetMessage().(type) {
	case *redoubtv1.Down_Refusal:
		return 0, s.refused(m.Refusal)
	case *redoubtv1.Down_Welcome:
		w := m.Welcome
		if p := w.GetProtocol(); p < proto.ProtocolMin || p > proto.ProtocolMax {
			return 0, fmt.Errorf("it uses protocol version %d, this agent supports %d to %d: upgrade the older one",
				p, proto.ProtocolMin, proto.ProtocolMax)
		}
		s.c.out.begin(w.GetFeatures())
		s.heard(w.GetServerTime())
		s.emit(machine.Connected{URL: coordinator, RenewFirst: w.GetRenewFirst(), Quarantine: w.GetQuarantine()})
		return min(max(time.Duration(w.GetKeepAliveSeconds())*time.Second, keepAliveMin), keepAliveMax), nil
	default:
		return 0, fmt.Errorf("%w: %T in place of a welcome", enroll.ErrOrder, m)
	}
}

// refused handles a refusal in place of a welcome. If the refusal stands only while the stream stays open, the machine is
// told before lingering, and the stream ends when the refusal no longer stands.
func (s *stream) refused(r *redoubtv1.Refusal) error {
	err := refused(r)
	var why *refusedError
	if r.GetHoldSeconds() == 0 || !errors.As(err, &why) {
		return err
	}
	s.emit(machine.Refused{Kind: why.kind(), Message: why.Error()})
	s.ch.linger(r.GetHoldSeconds())
	why.told = true
	return why // without a time to come back: that is now
}

func (s *stream) emit(e machine.Event) { s.c.cfg.Emit(s.ctx, e) }

func (s *stream) heard(serverTime int64) {
	if serverTime > 0 {
		s.c.cfg.Heard(time.UnixMilli(serverTime))
	}
}

// read handles frames until an error ends the stream.
func (s *stream) read(patience time.Duration) error {
	for {
		s.ch.conn.SetReadDeadline(time.Now().Add(patience))
		down, err := s.ch.read(wire.MaxFrame)
		if err != nil {
			return err
		}
		if err := s.take(down); err != nil {
			return err
		}
	}
}

func (s *stream) take(down *redoubtv1.Down) error {
	switch m := down.GetMessage().(type) {
	case *redoubtv1.Down_Netmap:
		if s.delta.Busy() {
			return fmt.Errorf("%w: a netmap within a change", enroll.ErrOrder)
		}
		done, nm, err := s.snapshot.Add(m.Netmap)
		if err != nil {
			return err
		}
		if done {
			s.emit(machine.Snapshot{Netmap: nm})
			return nil
		}
	case *redoubtv1.Down_Delta:
		if s.snapshot.Busy() {
			return fmt.Errorf("%w: a change within a netmap", enroll.ErrOrder)
		}
		done, d, err := s.delta.Add(m.Delta)
		if err != nil {
			return err
		}
		if done {
			s.emit(machine.Change{Delta: d})
			return nil
		}
	case *redoubtv1.Down_KeepAlive:
		s.heard(m.KeepAlive.GetServerTime())
		select {
		case s.asked <- struct{}{}:
		default:
		}
	case *redoubtv1.Down_Challenge:
		return s.challenge(m.Challenge)
	case *redoubtv1.Down_Result:
		return s.result(m.Result)
	case *redoubtv1.Down_Refusal:
		err := refused(m.Refusal)
		if s.c.out.renewing() {
			s.emit(machine.RenewFailed{Reason: err.Error(), KeyUsed: m.Refusal.GetCode() == redoubtv1.Refusal_CODE_KEY_USED})
		}
		return err
	case *redoubtv1.Down_Pending:
		return s.pending(m.Pending)
	case *redoubtv1.Down_Welcome:
		return fmt.Errorf("%w: a second welcome", enroll.ErrOrder)
	}
	s.emit(machine.Heard{})
	return nil
}

func (s *stream) challenge(c *redoubtv1.Challenge) error {
	x := s.c.out.exchange()
	if x == nil {
		return fmt.Errorf("%w: a challenge that nobody asked for", enroll.ErrOrder)
	}
	s.heard(c.GetServerTime())
	up, err := x.Answer(c, s.ch.exporter)
	if err != nil {
		return err
	}
	s.c.out.prove(up)
	return nil
}

func (s *stream) result(r *redoubtv1.Result) error {
	x := s.c.out.exchange()
	if x == nil {
		return fmt.Errorf("%w: a certificate that nobody asked for", enroll.ErrOrder)
	}
	self, err := x.Finish(r)
	s.c.out.renewed()
	if err != nil {
		s.emit(machine.RenewFailed{Reason: err.Error()})
		return err
	}
	s.emit(machine.Renewed{Self: self})
	return nil
}

// pending handles the answer that there is no certificate for now.
func (s *stream) pending(p *redoubtv1.Pending) error {
	if !s.c.out.renewing() {
		return fmt.Errorf("%w: %q, where nobody asked for a certificate", enroll.ErrOrder, p.GetMessage())
	}
	s.c.out.renewed()
	after := min(time.Duration(p.GetRetryAfterSeconds())*time.Second, time.Hour)
	s.emit(machine.RenewFailed{Reason: p.GetMessage(), Withheld: true, After: after})
	return nil
}

// write sends what is in the outbox, and keepalives after a long silence. The coordinator speaks first, to many nodes at
// once: an answer while both ends are awake costs less than a keepalive at a time of our own. We answer only if we have been
// silent for half the interval, so that answering an answer cannot go on.
func (s *stream) write(keepAlive time.Duration) error {
	alone := keepAlive + grace
	idle, said := time.NewTimer(alone), time.Now()
	defer idle.Stop()
	for {
		select {
		case <-s.ended:
			return nil
		case <-s.c.out.wake:
		case <-s.asked:
			if time.Since(said) >= keepAlive/2 {
				s.c.out.keepAlive()
			}
		case <-idle.C:
			s.c.out.keepAlive()
		}
		frames, err := s.c.out.take(s.begin)
		if err != nil {
			return err
		}
		if len(frames) > 0 {
			s.ch.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := s.ch.conn.Write(frames); err != nil {
				return err
			}
			idle.Reset(alone)
			said = time.Now()
		}
	}
}

// begin creates the exchange of a renewal.
func (s *stream) begin(r Renewal) (*enroll.Exchange, error) {
	s.deadline = time.AfterFunc(exchangeTimeout, func() {
		if s.c.out.renewing() {
			s.end(errors.New("the coordinator did not answer the request for a certificate"))
		}
	})
	return enroll.Renew(enroll.Request{
		Prover: s.c.cfg.Prover,
		Device: s.c.cfg.Device, Node: r.Node, Program: s.c.cfg.Program, Hostname: s.c.cfg.Hostname, Facts: s.c.cfg.facts(),
		Roots: s.c.trusted(), Ticket: r.Ticket, Talking: r.Talking, Posture: s.c.out.healthNow,
	})
}

func (c Config) facts() enroll.Facts {
	if c.Facts == nil {
		return enroll.Facts{}
	}
	return c.Facts()
}

// shown names the roots in a chain.
func shown(chain [][]byte) string {
	var roots []string
	for _, b := range chain {
		if root, _, err := cert.ParseRoot(b); err == nil {
			f := cert.Fingerprint(root)
			roots = append(roots, fmt.Sprintf("%x...", f[:6]))
		}
	}
	if len(roots) == 0 {
		return "none"
	}
	return strings.Join(roots, " and ")
}
