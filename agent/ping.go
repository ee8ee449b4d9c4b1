package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/echo"
	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// pingPatience is how long to wait for a reply; a handshake may have to come first.
const pingPatience = 2 * time.Second

// pings is a series of echo requests to a peer, with the path to it.
type pings struct {
	a      *Agent
	node   *cert.Node
	dst    netip.Addr
	socket Pinger
	emit   func(*redoubtv1.PingResponse) error
	way    told // as last reported
}

// Ping sends echo requests to a peer, and reports every change of the path to it.
func (a *Agent) Ping(ctx context.Context, r *redoubtv1.PingRequest, emit func(*redoubtv1.PingResponse) error) error {
	n, err := a.find(ctx, r.GetPeer())
	if err != nil {
		return err
	}
	p := &pings{a: a, node: n, dst: n.Addrs.V4, emit: emit}
	if addr, err := netip.ParseAddr(r.GetPeer()); err == nil {
		p.dst = addr
	}
	src, err := a.source(ctx, p.dst)
	if err != nil {
		return err
	}
	if p.socket, err = a.cfg.Edges.OpenPing(src); err != nil {
		return &localapi.Error{Code: connect.CodeUnavailable, Err: err}
	}
	defer func() { _ = p.socket.Close() }()
	if p.way, err = p.look(ctx); err != nil {
		return err
	}
	interval := time.Duration(r.GetIntervalMs()) * time.Millisecond
	for seq := uint32(1); ; seq++ {
		next := time.NewTimer(interval)
		directly, err := p.echo(ctx, seq)
		if err == nil && seq != r.GetCount() && (!directly || !r.GetUntilDirect()) {
			err = p.pause(ctx, next.C, r.GetUntilDirect())
		} else {
			next.Stop()
			return err
		}
		next.Stop()
		if err != nil {
			return err
		}
	}
}

// source returns this node's address in the family of dst.
func (a *Agent) source(ctx context.Context, dst netip.Addr) (src netip.Addr, err error) {
	down := false
	err = a.call(ctx, func() {
		if a.loop.path == nil {
			down = true
			return
		}
		src = a.loop.path.self.Node.Addrs.V4
		if dst.Is6() {
			src = a.loop.path.self.Node.Addrs.V6
		}
	})
	if down {
		err = &localapi.Error{Code: connect.CodeFailedPrecondition, Err: errors.New("the node is down: run `redoubt up`")}
	}
	return src, err
}

// look returns the path that packets to the peer take at the moment.
func (p *pings) look(ctx context.Context) (t told, err error) {
	err = p.a.call(ctx, func() {
		d := p.a.loop.path
		if d == nil {
			return
		}
		if s, err := d.engine.Peer(p.node.ID); err == nil { // else it is no longer a peer, and has no path
			t = d.ways([]proto.NodeID{p.node.ID}).of(s)
		}
	})
	return t, err
}

// follow reports a change of the path.
func (p *pings) follow(ctx context.Context) error {
	t, err := p.look(ctx)
	if err != nil {
		return err
	}
	moved := p.way.kind != "" && t.kind != "" && !t.same(p.way)
	if t.kind != "" || p.way.kind == "" {
		p.way = t
	}
	if !moved {
		return nil
	}
	r := p.response()
	r.Moved = true
	return p.emit(r)
}

func (p *pings) response() *redoubtv1.PingResponse {
	r := &redoubtv1.PingResponse{PeerName: p.node.Name, Address: p.dst.String()}
	p.way.ping(r)
	return r
}

// direct reports whether packets go by a direct path that is not in doubt.
func (p *pings) direct() bool { return p.way.kind == "direct" && !p.way.doubt }

// echo sends one request and reports the outcome. It returns whether the reply came back directly.
func (p *pings) echo(ctx context.Context, seq uint32) (directly bool, err error) {
	within, cancel := context.WithTimeout(ctx, pingPatience)
	type answer struct {
		rtt time.Duration
		err error
	}
	came := make(chan answer, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		rtt, err := p.socket.Ping(within, p.dst)
		came <- answer{rtt, err}
	}()
	defer func() {
		cancel()
		<-ended
	}()
	for {
		changed := p.a.change()
		if err := p.follow(ctx); err != nil {
			return false, err
		}
		select {
		case <-changed:
			continue
		case got := <-came:
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if err := p.follow(ctx); err != nil {
				return false, err
			}
			r := p.response()
			r.Sequence = seq
			if r.RttUs = uint64(got.rtt.Microseconds()); got.err != nil {
				r.RttUs, r.Lost, r.Reason = 0, true, p.reason(got.err)
			}
			return got.err == nil && p.direct(), p.emit(r)
		}
	}
}

// pause waits until the next echo is due or, if untilDirect, until there is a direct path.
func (p *pings) pause(ctx context.Context, next <-chan time.Time, untilDirect bool) error {
	was := p.direct()
	for {
		changed := p.a.change()
		if err := p.follow(ctx); err != nil {
			return err
		}
		if untilDirect && !was && p.direct() {
			return nil
		}
		select {
		case <-changed:
		case <-next:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reason says why there was no reply, as far as that is known.
func (p *pings) reason(err error) string {
	switch allowed, why := p.a.mayPing(p.dst); {
	case !allowed:
		return "denied on this node: " + why
	case !errors.Is(err, echo.ErrLost):
		return err.Error()
	case p.way.kind == "" && p.way.why != "":
		return "no reply from " + p.node.Name + " so far; it may be off: " + p.way.why
	case p.way.kind == "":
		return "no tunnel to " + p.node.Name + " so far: it may be off, or our packets do not reach it"
	}
	return "no reply within " + pingPatience.String()
}

// mayPing reports whether the program in force lets this node ping an address of a peer, and if not, why.
func (a *Agent) mayPing(dst netip.Addr) (bool, string) {
	protocol := uint8(proto.ProtoICMP)
	if dst.Is6() {
		protocol = proto.ProtoICMPv6
	}
	rule, reason := a.program.Load().Why(proto.Out, dst, protocol, 0)
	if reason == filter.Permitted {
		return true, ""
	}
	if reason == filter.Forbidden {
		return false, fmt.Sprintf("%s (%s, line %d of the policy)", reason, rule.Path, rule.Line)
	}
	if rule.Path != "" {
		return false, fmt.Sprintf("%s (nearest: %s, line %d of the policy)", reason, rule.Path, rule.Line)
	}
	return false, reason.String()
}
