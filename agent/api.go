package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

var _ localapi.Backend = (*Agent)(nil)

// Up brings the node up, with a join code if it is not in a mesh yet, and waits until packets can pass.
func (a *Agent) Up(ctx context.Context, r *redoubtv1.UpRequest, progress func(string)) (*redoubtv1.Status, error) {
	code, hostname := r.GetCode(), r.GetHostname()
	event := machine.Up{Hostname: hostname}
	if code != "" {
		c, err := join.Parse(code)
		if err != nil {
			return nil, &localapi.Error{Code: connect.CodeInvalidArgument, Err: err}
		}
		event.Join = &state.Join{URLs: c.URLs, Root: c.Root, Secret: c.Secret}
	}
	if len(hostname) > 63 {
		return nil, &localapi.Error{Code: connect.CodeInvalidArgument, Err: errors.New("a host name has at most 63 characters")}
	}
	select {
	case <-a.running:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var refused error
	var member string // the node's name, if it is in the mesh already
	var unused string
	err := a.call(ctx, func() {
		if event.Routing, refused = changed(a.loop.machine.Routing(), r.GetRouting()); refused != nil {
			refused = wrong(refused)
			return
		}
		if refused = a.loop.machine.Check(event); refused != nil {
			return
		}
		v := a.loop.machine.View(a.time.Now())
		if v.Node != nil && v.State != machine.StateRevoked {
			member = v.Node.Name
		}
		if c := r.GetRouting(); c == nil || c.Accept == nil {
			unused = notYet(v.Routing)
		}
		a.step(event)
	})
	if err != nil {
		return nil, err
	}
	if local := (*localapi.Error)(nil); errors.As(refused, &local) {
		return nil, refused
	}
	if refused != nil {
		return nil, &localapi.Error{Code: connect.CodeFailedPrecondition, Err: refused}
	}
	switch {
	case member == "":
	case event.Join != nil:
		progress("this machine is already in the mesh, as " + member + "; the join code was not used")
	case hostname != "" && hostname != member:
		progress("this machine is already in the mesh, as " + member + ", and keeps that name")
	}
	if unused != "" {
		progress(unused)
	}
	return a.await(ctx, progress)
}

// await reports progress until the node runs, or cannot.
func (a *Agent) await(ctx context.Context, progress func(string)) (*redoubtv1.Status, error) {
	last, joins := "", false
	for {
		changed := a.change()
		st, err := a.Status(ctx)
		if err != nil {
			return nil, err
		}
		enrolled := "enrolled as " + st.GetNode().GetName() + "; starting the data path"
		var step string
		switch machine.State(st.GetState()) {
		case machine.StateRunning:
			if joins { // it went faster than this loop saw
				progress(enrolled)
			}
			return st, nil
		case machine.StateDown, machine.StateRevoked, machine.StateLocked:
			return nil, &localapi.Error{Code: connect.CodeFailedPrecondition, Err: errors.New(reasons(st, "the node was taken down in the meantime"))}
		case machine.StatePending:
			joins, step = true, reasons(st, "waiting for an administrator's approval")
		case machine.StateEnrolling:
			joins, step = true, reasons(st, "asking the coordinator for a certificate")
		case machine.StateExpired:
			step = reasons(st, "renewing the certificate")
		default:
			joins, step = false, reasons(st, enrolled)
		}
		if step != last {
			progress(step)
			last = step
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// reasons joins the problems of a status; it returns otherwise if there are none.
func reasons(st *redoubtv1.Status, otherwise string) string {
	if len(st.GetProblems()) == 0 {
		return otherwise
	}
	return strings.Join(st.GetProblems(), "; ")
}

// Down takes the node down and restores the host's network.
func (a *Agent) Down(ctx context.Context) error {
	return a.call(ctx, func() { a.step(machine.Down{}) })
}

// Whois returns the node that owns an overlay address, and the application capabilities that this node grants to it.
func (a *Agent) Whois(ctx context.Context, addr netip.Addr) (*redoubtv1.WhoisResponse, error) {
	n, err := a.find(ctx, addr.String())
	if err != nil {
		return nil, err
	}
	w := &redoubtv1.WhoisResponse{Node: describe(n)}
	return w, a.inspect(ctx, func() {
		for _, c := range a.loop.machine.Capabilities(n.Identity) {
			w.Capabilities = append(w.Capabilities, &redoubtv1.Capability{Name: c.Name, Values: c.Values})
		}
	})
}

// find finds this node or a peer by name, ID or overlay address.
func (a *Agent) find(ctx context.Context, who string) (*cert.Node, error) {
	var found *cert.Node
	addr, _ := netip.ParseAddr(who)
	match := func(n *cert.Node) bool {
		return n.Name == who || n.DNSName == who || n.ID.String() == who || n.Addrs.Has(addr)
	}
	err := a.inspect(ctx, func() {
		v := a.loop.machine.View(a.time.Now())
		if v.Node != nil && match(v.Node) {
			found = v.Node
			return
		}
		found, _ = a.loop.machine.Peer(match)
	})
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, &localapi.Error{Code: connect.CodeNotFound, Err: fmt.Errorf(
			"%.100q is not a node that this one knows: `redoubt status` lists the nodes that a rule connects it with", who)}
	}
	return found, nil
}
