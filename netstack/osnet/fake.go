package osnet

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Fake is an in-memory Network: it records what it was told and returns what a test has set. The zero value is ready to use.
type Fake struct {
	mu       sync.Mutex
	up       *Config
	ups      int
	closed   bool
	upError  error
	problems []string
	addrs    []netip.Addr
	clashes  []string
	gateway  netip.Addr
	local    netip.Addr
	gateway6 netip.Addr
	local6   netip.Addr
	watchers map[chan struct{}]struct{}
}

var _ Network = (*Fake)(nil)

var errClosed = errors.New("the network was closed")

// Up implements Network.
func (f *Fake) Up(c Config) error {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errClosed
	}
	if f.upError != nil {
		return f.upError
	}
	f.up = &c
	f.ups++
	return nil
}

// Down implements Network.
func (f *Fake) Down() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up = nil
	return nil
}

// Problems implements Network.
func (f *Fake) Problems() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.problems)
}

// Endpoints implements Network.
func (f *Fake) Endpoints(mesh proto.Mesh) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []netip.Addr
	for _, a := range f.addrs {
		if !mesh.Contains(a) && len(out) < MaxEndpoints {
			out = append(out, a)
		}
	}
	return out, nil
}

// Gateway implements Network.
func (f *Fake) Gateway() (gateway, local netip.Addr, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gateway, f.local, nil
}

// Gateway6 implements Network.
func (f *Fake) Gateway6() (gateway, local netip.Addr, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gateway6, f.local6, nil
}

// Clashes implements Network.
func (f *Fake) Clashes(proto.Mesh) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.clashes), nil
}

// Watch implements Network. SetEndpoints is what makes changes; each is reported at once, and a pending report stands for all
// that follow.
func (f *Fake) Watch(ctx context.Context) (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errClosed
	}
	if f.watchers == nil {
		f.watchers = make(map[chan struct{}]struct{})
	}
	ch := make(chan struct{}, 1)
	f.watchers[ch] = struct{}{}
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if _, ok := f.watchers[ch]; ok {
			delete(f.watchers, ch)
			close(ch)
		}
	})
	return ch, nil
}

// Close implements Network.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up, f.closed = nil, true
	for ch := range f.watchers {
		close(ch)
	}
	f.watchers = nil
	return nil
}

// Config returns the config that is up, if any.
func (f *Fake) Config() (Config, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up == nil {
		return Config{}, false
	}
	return *f.up, true
}

// Ups returns how often Up has succeeded.
func (f *Fake) Ups() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ups
}

// SetEndpoints sets the host's addresses and notifies the watchers.
func (f *Fake) SetEndpoints(addrs ...netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs = slices.Clone(addrs)
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// SetGateway sets what Gateway returns, or Gateway6 if gateway is an IPv6 address.
func (f *Fake) SetGateway(gateway, local netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if gateway.Is6() {
		f.gateway6, f.local6 = gateway, local
		return
	}
	f.gateway, f.local = gateway, local
}

// SetClashes sets what Clashes returns.
func (f *Fake) SetClashes(texts ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clashes = slices.Clone(texts)
}

// SetProblems sets what Problems returns.
func (f *Fake) SetProblems(texts ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = slices.Clone(texts)
}

// FailUp makes Up fail with err; nil makes it succeed again.
func (f *Fake) FailUp(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.upError = err
}
