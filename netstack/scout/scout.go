package scout

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

// lookAgain is the interval between probes that nothing else triggered.
const lookAgain = 30 * time.Minute

// Config configures a Scout.
type Config struct {
	// Send sends a message from the socket.
	Send func(msg []byte, to netip.AddrPort) error
	// PortMap configures port mapping; its Changed is not used. Nil disables port mapping.
	PortMap *portmap.Config
	// PortMap6 is the same for IPv6, where the router is a firewall.
	PortMap6 *portmap.Config
	// Changed is called when the report may have changed. It must not block or call the Scout.
	Changed func()
}

// Ground describes where the socket is.
type Ground struct {
	Servers []netip.AddrPort // STUN servers to ask
	Local   []netip.AddrPort // the socket's local addresses
	Port    uint16           // the port to ask the router to open; 0 asks for nothing, and leaves open what was
	Full    bool             // find out everything the servers can tell
}

// Report is what the Scout found.
type Report struct {
	STUN    stun.Report
	Router  portmap.State
	Router6 portmap.State
}

// Scout probes on behalf of one socket.
type Scout struct {
	cfg     Config
	ground  chan Ground
	inbox   chan stun.Received
	stop    chan struct{}
	ended   sync.WaitGroup
	once    sync.Once
	router  *portmap.Client // nil if not used; likewise router6
	router6 *portmap.Client
	report  atomic.Pointer[stun.Report]
}

// New returns a Scout that is idle until Look is called. The caller must close it.
func New(cfg Config) *Scout {
	s := &Scout{cfg: cfg, ground: make(chan Ground, 1), inbox: make(chan stun.Received, 32), stop: make(chan struct{})}
	s.report.Store(&stun.Report{})
	client := func(edges *portmap.Config) *portmap.Client {
		if edges == nil {
			return nil
		}
		own := *edges
		own.Changed = func(portmap.State) { cfg.Changed() }
		return portmap.New(own)
	}
	s.router, s.router6 = client(cfg.PortMap), client(cfg.PortMap6)
	s.ended.Go(s.run)
	return s
}

// Close stops the Scout and deletes its port mappings.
func (s *Scout) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.ended.Wait()
	var errs []error
	for _, r := range s.routers() {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// routers returns the port mapping clients in use.
func (s *Scout) routers() []*portmap.Client {
	return slices.DeleteFunc([]*portmap.Client{s.router, s.router6}, func(c *portmap.Client) bool { return c == nil })
}

// STUN handles a STUN message received on the socket. Messages beyond the buffer are dropped: the requests are repeated.
func (s *Scout) STUN(from netip.AddrPort, msg []byte) {
	select {
	case s.inbox <- stun.Received{From: from, Msg: slices.Clone(msg)}:
	default:
	}
}

// Look starts probing from where the socket is now. It does not wait.
func (s *Scout) Look(g Ground) {
	select {
	case <-s.ground: // an older one, not yet consumed
	default:
	}
	select {
	case s.ground <- g:
	default: // a concurrent call was faster
	}
}

// Report returns what is known. While a new probe runs, the earlier results stand until it is done.
func (s *Scout) Report() Report {
	r := Report{STUN: *s.report.Load()}
	if s.router != nil {
		r.Router = s.router.State()
	}
	if s.router6 != nil {
		r.Router6 = s.router6.State()
	}
	return r
}

// Opened returns the addresses at which routers let others reach the socket.
func (r Report) Opened() (all []netip.AddrPort) {
	for _, opened := range []netip.AddrPort{r.Router.External, r.Router6.External} {
		if opened.IsValid() {
			all = append(all, opened)
		}
	}
	return all
}

// Outside returns the addresses at which others may reach the socket, most reliable first: those the router opened, then those
// the servers saw.
func (r Report) Outside() []netip.AddrPort {
	all := r.Opened()
	for _, a := range r.STUN.Mapped() {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

func (s *Scout) run() {
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	prober := stun.NewProber(seed)
	tick, again := time.NewTimer(0), time.NewTimer(lookAgain)
	defer tick.Stop()
	defer again.Stop()
	var here Ground
	begin := func() stun.Event {
		again.Reset(lookAgain)
		return stun.Begin{Servers: here.Servers, Local: here.Local, Full: here.Full}
	}
	for {
		var e stun.Event
		select {
		case <-s.stop:
			return
		case here = <-s.ground:
			for _, r := range s.routers() {
				if here.Port != 0 {
					r.Start(here.Port)
				}
			}
			e = begin()
		case <-again.C:
			e = begin()
		case r := <-s.inbox:
			e = r
		case <-tick.C:
			e = stun.Tick{}
		}
		for _, f := range prober.Step(time.Now(), e) {
			s.do(f, tick)
		}
	}
}

func (s *Scout) do(f stun.Effect, tick *time.Timer) {
	switch f := f.(type) {
	case stun.Send:
		_ = s.cfg.Send(f.Msg, f.To) // a failed send is like a packet lost in transit: it is repeated
	case stun.Wake:
		tick.Reset(time.Until(f.At))
	case stun.Found:
		// In the first run every answer helps; later, a partial report must not replace a complete one.
		if !f.Report.Done && s.report.Load().Done {
			return
		}
		s.report.Store(&f.Report)
		s.cfg.Changed()
	}
}
