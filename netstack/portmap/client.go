package portmap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Client.
type Config struct {
	// Gateway returns the default router of one family, and our address on the path to it.
	Gateway func() (gateway, local netip.Addr, err error)
	// Listen opens a socket for requests over UDP.
	Listen func(local netip.Addr) (net.PacketConn, error)
	// Announcements opens a socket for the router's multicasts, at port 5350 of 224.0.0.1 or ff02::1. If nil, they are not
	// received.
	Announcements func(local netip.Addr) (net.PacketConn, error)
	// Dial opens connections for UPnP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Changed is called with each new State, one call at a time.
	Changed func(State)
}

// Client keeps a mapping of a UDP port until it is closed.
type Client struct {
	cfg    Config
	http   *http.Client
	state  atomic.Pointer[State]
	events chan Event
	begin  chan uint16
	ctx    context.Context
	stop   context.CancelFunc
	ended  chan struct{}
	once   sync.Once

	// The rest belongs to run.
	machine *Machine
	port    uint16
	local   netip.Addr
	socks   []net.PacketConn
	readers sync.WaitGroup
	fetches sync.WaitGroup
	timer   *time.Timer
}

// goodbye bounds how long Close waits for the router to delete the mapping.
const goodbye = 2 * time.Second

// New returns a Client that is idle until Start is called.
func New(cfg Config) *Client {
	c := &Client{
		cfg: cfg, events: make(chan Event, 16), begin: make(chan uint16, 1), ended: make(chan struct{}),
		timer: time.NewTimer(0),
	}
	c.http = &http.Client{
		Timeout: fetchTime,
		Transport: &http.Transport{
			DialContext: cfg.Dial, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	c.machine = NewMachine(seed)
	c.state.Store(&State{})
	c.ctx, c.stop = context.WithCancel(context.Background())
	go c.run()
	return c
}

// Start requests a mapping of a UDP port. Called again, e.g. after the network changed, it checks on the mapping. It does not
// wait.
func (c *Client) Start(port uint16) {
	select {
	case <-c.begin: // an older one, not yet consumed
	default:
	}
	select {
	case c.begin <- port:
	default: // a concurrent call was faster
	}
}

// State returns the current state.
func (c *Client) State() State { return *c.state.Load() }

// Close deletes the mapping, waiting only briefly for the router, and ends the client.
func (c *Client) Close() error {
	c.once.Do(c.stop)
	<-c.ended
	return nil
}

func (c *Client) run() {
	defer close(c.ended)
	for {
		select {
		case <-c.ctx.Done():
			c.leave()
			return
		case c.port = <-c.begin:
			c.starts()
		case e := <-c.events:
			c.step(e)
		case <-c.timer.C:
			c.step(Tick{})
		}
	}
}

// starts looks up the router, and reopens the sockets if our address has changed.
func (c *Client) starts() {
	gateway, local, err := c.cfg.Gateway()
	if err == nil && (local != c.local || len(c.socks) == 0) {
		c.closeSockets()
		err = c.openSockets(local)
	}
	if err != nil {
		c.step(Start{})
		s := State{Problem: err.Error()}
		c.state.Store(&s)
		c.cfg.Changed(s)
		return
	}
	c.step(Start{Gateway: gateway, Local: local, Port: c.port})
}

func (c *Client) openSockets(local netip.Addr) error {
	if !local.IsValid() {
		return errors.New("there is no router")
	}
	sock, err := c.cfg.Listen(local)
	if err != nil {
		return fmt.Errorf("open a socket towards the router: %w", err)
	}
	c.local, c.socks = local, []net.PacketConn{sock}
	if c.cfg.Announcements != nil {
		// Another program may hold the port. Then we notice later that a router lost its state.
		if sock, err := c.cfg.Announcements(local); err == nil {
			c.socks = append(c.socks, sock)
		}
	}
	for _, s := range c.socks {
		c.readers.Go(func() { c.read(s) })
	}
	return nil
}

// closeSockets also discards unprocessed events: the readers may be blocked sending them.
func (c *Client) closeSockets() {
	for _, s := range c.socks {
		_ = s.Close() // nothing can be lost
	}
	gone := make(chan struct{})
	go func() { c.readers.Wait(); close(gone) }()
	for {
		select {
		case <-c.events:
			continue
		case <-gone:
		}
		break
	}
	c.socks = nil
}

// read forwards the packets received on a socket until it is closed.
func (c *Client) read(s net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		a, ok := from.(*net.UDPAddr)
		if err != nil || !ok {
			if !c.pause() { // an ICMP error caused by an earlier packet, or out of memory
				return
			}
			continue
		}
		p := a.AddrPort()
		c.events <- Received{From: netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), Msg: append([]byte(nil), b[:n]...)}
	}
}

// pause keeps a recurring error from causing a busy loop. It reports false if the client is closing.
func (c *Client) pause() bool {
	select {
	case <-time.After(100 * time.Millisecond):
		return true
	case <-c.ctx.Done():
		return false
	}
}

func (c *Client) step(e Event) {
	for _, f := range c.machine.Step(time.Now(), e) {
		switch f := f.(type) {
		case Send:
			if len(c.socks) > 0 {
				// A failed send is like a packet lost in transit: it is repeated.
				_, _ = c.socks[0].WriteTo(f.Msg, net.UDPAddrFromAddrPort(f.To))
			}
		case Fetch:
			c.fetches.Go(func() { c.fetch(f) })
		case Wake:
			c.timer.Reset(time.Until(f.At))
		case Changed:
			c.state.Store(&f.State)
			if c.ctx.Err() == nil {
				c.cfg.Changed(f.State)
			}
		}
	}
}

// fetch makes an HTTP request to the router. Few run at a time, as the machine waits for one before it starts the next.
func (c *Client) fetch(f Fetch) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), fetchTime)
	defer cancel()
	defer context.AfterFunc(c.ctx, func() { time.AfterFunc(goodbye, cancel) })()
	body, ok := c.exchange(ctx, f)
	select {
	case c.events <- Fetched{ID: f.ID, Body: body, OK: ok}:
	case <-c.ctx.Done():
	}
}

func (c *Client) exchange(ctx context.Context, f Fetch) ([]byte, bool) {
	method := http.MethodGet
	if f.Action != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, f.URL, strings.NewReader(f.Body))
	if err != nil {
		return nil, false
	}
	if f.Action != "" {
		req.Header.Set("Content-Type", `text/xml; charset="utf-8"`)
		req.Header["SOAPAction"] = []string{`"` + f.Action + `"`} // some routers recognize it only in this case
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	_ = res.Body.Close() // it was only read
	// A service reports its own errors with status 500.
	return body, err == nil && (res.StatusCode == http.StatusOK || res.StatusCode == http.StatusInternalServerError)
}

// leave deletes the mapping and waits for all goroutines.
func (c *Client) leave() {
	c.step(Stop{})
	c.fetches.Wait()
	c.closeSockets()
	c.timer.Stop()
}
