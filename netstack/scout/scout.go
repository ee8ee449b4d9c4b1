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

// lookAgain is how often it looks by itself.
const lookAgain = 30 * time.Minute

// Config is what a Scout takes.
type Config struct {
	// Send sends a message by the socket.
	Send func(msg []byte, to netip.AddrPort) error
	// PortMap has the edges of port mapping; its Changed is not used. Nil leaves routers alone.
	PortMap *portmap.Config
	// PortMap6 is the same over IPv6, where routers are firewalls.
	PortMap6 *portmap.Config
	// Changed is told that the report may be another. It must not block, nor call the Scout.
	Changed func()
}

// Ground is where the socket is.
type Ground struct {
	Servers []netip.AddrPort // that are asked by STUN
	Local   []netip.AddrPort // the addresses of the socket
	Port    uint16           // that the router is asked to open; 0: none
	Full    bool             // find out all that servers can tell
}

// Report is what was found.
type Report struct {
	STUN    stun.Report
	Router  portmap.State
	Router6 portmap.State
}

// Scout looks after one socket.
type Scout struct {
	cfg     Config
	ground  chan Ground
	inbox   chan stun.Received
	stop    chan struct{}
	ended   sync.WaitGroup
	once    sync.Once
	router  *portmap.Client // nil: none is asked; as router6
	router6 *portmap.Client
	report  atomic.Pointer[stun.Report]
}

// New makes a Scout that looks at nothing yet. Close it.
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

// Close ends it, and a mapping with it.
func (s *Scout) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.ended.Wait()
	var errs []error
	for _, r := range s.routers() {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// routers are those that are asked.
func (s *Scout) routers() []*portmap.Client {
	return slices.DeleteFunc([]*portmap.Client{s.router, s.router6}, func(c *portmap.Client) bool { return c == nil })
}

// STUN takes what came to the socket. What is too much at once is dropped: it is asked for again.
func (s *Scout) STUN(from netip.AddrPort, msg []byte) {
	select {
	case s.inbox <- stun.Received{From: from, Msg: slices.Clone(msg)}:
	default:
	}
}

// Look has it look at where the socket is now. It does not wait.
func (s *Scout) Look(g Ground) {
	select {
	case <-s.ground: // an older one that nobody took yet
	default:
	}
	select {
	case s.ground <- g:
	default: // another call was faster
	}
}

// Report is what is known now. While it looks again, what it knew before stands until it is done.
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

// Opened are the addresses at which routers let others reach the socket.
func (r Report) Opened() (all []netip.AddrPort) {
	for _, opened := range []netip.AddrPort{r.Router.External, r.Router6.External} {
		if opened.IsValid() {
			all = append(all, opened)
		}
	}
	return all
}

// Outside are the addresses at which others may reach the socket, the surest first: what the router opened, then what servers
// saw.
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
		_ = s.cfg.Send(f.Msg, f.To) // it is as lost as what is lost on the way: it is sent again
	case stun.Wake:
		tick.Reset(time.Until(f.At))
	case stun.Found:
		// The first time every answer helps; afterwards half an answer must not stand in for a whole one.
		if !f.Report.Done && s.report.Load().Done {
			return
		}
		s.report.Store(&f.Report)
		s.cfg.Changed()
	}
}
