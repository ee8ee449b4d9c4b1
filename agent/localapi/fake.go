package localapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"connectrpc.com/connect"
	pb "google.golang.org/protobuf/proto"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Fake is a Backend that returns what a test has set. The zero value knows nothing and is down.
type Fake struct {
	mu       sync.Mutex
	status   *redoubtv1.Status
	refused  error
	pings    []*redoubtv1.PingResponse
	why      *redoubtv1.WhyResponse
	grants   []*redoubtv1.Capability
	downs    int
	posture  *redoubtv1.PostureResponse
	read     int // calls of Posture with refresh
	underlay *redoubtv1.UnderlayResponse
	asked    *redoubtv1.UpRequest
}

var _ Backend = (*Fake)(nil)

// SetStatus sets the status that Status, Up and Whois use.
func (f *Fake) SetStatus(st *redoubtv1.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = st
}

// Asked returns the last request of Up.
func (f *Fake) Asked() *redoubtv1.UpRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// Refuse makes Up and Down fail with err.
func (f *Fake) Refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = err
}

// SetPings sets the responses of Ping.
func (f *Fake) SetPings(p ...*redoubtv1.PingResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pings = p
}

// Explain sets the response of Why.
func (f *Fake) Explain(w *redoubtv1.WhyResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why = w
}

// SetUnderlay sets the response of Underlay.
func (f *Fake) SetUnderlay(u *redoubtv1.UnderlayResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.underlay = u
}

// Grant sets the capabilities in Whois responses.
func (f *Fake) Grant(c ...*redoubtv1.Capability) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.grants = c
}

// SetPosture sets the response of Posture.
func (f *Fake) SetPosture(p *redoubtv1.PostureResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.posture = p
}

// Refreshed counts the calls of Posture with refresh.
func (f *Fake) Refreshed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read
}

// Downs counts the calls of Down.
func (f *Fake) Downs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.downs
}

// Status implements Backend.
func (f *Fake) Status(context.Context) (*redoubtv1.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status == nil {
		return &redoubtv1.Status{State: "down"}, nil
	}
	return f.status, nil
}

// Up implements Backend: it reports its arguments as progress.
func (f *Fake) Up(ctx context.Context, r *redoubtv1.UpRequest, progress func(string)) (*redoubtv1.Status, error) {
	f.mu.Lock()
	err := f.refused
	f.asked = r
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("code of %d characters, hostname %q", len(r.GetCode()), r.GetHostname()))
	return f.Status(ctx)
}

// Down implements Backend.
func (f *Fake) Down(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.downs++
	return f.refused
}

// Ping implements Backend: unless responses were set, each round trip takes as long as the interval.
func (f *Fake) Ping(ctx context.Context, r *redoubtv1.PingRequest, emit func(*redoubtv1.PingResponse) error) error {
	f.mu.Lock()
	all := f.pings
	f.mu.Unlock()
	for n := uint32(0); all == nil && n < r.GetCount(); n++ {
		err := emit(&redoubtv1.PingResponse{
			PeerName: r.GetPeer(), Address: "100.64.0.2", Sequence: n + 1, RttUs: uint64(r.GetIntervalMs()) * 1000, Path: "direct", Endpoint: "192.0.2.2:41641",
		})
		if err != nil {
			return err
		}
	}
	for _, p := range all {
		if err := emit(p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Whois implements Backend: it knows the node of the status.
func (f *Fake) Whois(_ context.Context, a netip.Addr) (*redoubtv1.WhoisResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.status.GetNode(); n != nil && slices.Contains(n.GetAddresses(), a.String()) {
		return &redoubtv1.WhoisResponse{Node: n, Capabilities: f.grants}, nil
	}
	return nil, &Error{connect.CodeNotFound, errors.New("nobody has that address")}
}

// Why implements Backend: it copies the question into the response that was set.
func (f *Fake) Why(_ context.Context, r *redoubtv1.WhyRequest) (*redoubtv1.WhyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why == nil {
		return nil, &Error{connect.CodeNotFound, errors.New("there is no node of that name")}
	}
	w, ok := pb.Clone(f.why).(*redoubtv1.WhyResponse)
	if !ok {
		panic("a clone of another type")
	}
	w.From, w.To = r.GetSource(), r.GetDestination()
	w.Service = fmt.Sprintf("%d:%d", r.GetProtocol(), r.GetPort())
	return w, nil
}

// Underlay implements Backend.
func (f *Fake) Underlay(context.Context) (*redoubtv1.UnderlayResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := &redoubtv1.UnderlayResponse{}
	pb.Merge(u, f.underlay)
	return u, nil
}

// Posture implements Backend.
func (f *Fake) Posture(_ context.Context, refresh bool) (*redoubtv1.PostureResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if refresh {
		f.read++
	}
	if f.posture == nil {
		return &redoubtv1.PostureResponse{}, nil
	}
	return f.posture, nil
}
