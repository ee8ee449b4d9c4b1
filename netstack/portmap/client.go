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

// Config is what a Client takes.
type Config struct {
	// Gateway is the default router of one family, and our address on the way there.
	Gateway func() (gateway, local netip.Addr, err error)
	// Listen opens a socket for questions by UDP.
	Listen func(local netip.Addr) (net.PacketConn, error)
	// Announcements opens a socket for what the router tells all, at port 5350 of 224.0.0.1 or ff02::1. Nil is without.
	Announcements func(local netip.Addr) (net.PacketConn, error)
	// Dial opens connections for UPnP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Changed is called, one call after the other, with every new State.
	Changed func(State)
}

// Client keeps a mapping of a UDP port for as long as it is open.
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

	// All of these belong to run.
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

// New is a Client that asks for nothing yet.
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

// Start asks for a mapping of a UDP port; again, it looks after it: after the network changed, say. It does not wait.
func (c *Client) Start(port uint16) {
	select {
	case <-c.begin: // an older one that nobody took yet
	default:
	}
	select {
	case c.begin <- port:
	default: // another call was faster
	}
}

// State is what there is now.
func (c *Client) State() State { return *c.state.Load() }

// Close deletes the mapping, if the router is quick to hear of it, and ends the client.
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

// starts looks where the router is, and opens sockets towards it if we are elsewhere than before.
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
		// Another program may have the port. Then a router that lost its state is noticed later.
		if sock, err := c.cfg.Announcements(local); err == nil {
			c.socks = append(c.socks, sock)
		}
	}
	for _, s := range c.socks {
		c.readers.Go(func() { c.read(s) })
	}
	return nil
}

// closeSockets also drops what is read and not looked at: the readers may wait for that.
func (c *Client) closeSockets() {
	for _, s := range c.socks {
		_ = s.Close() // there is nothing that could be lost
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

// read hands over what comes to a socket, until it is closed.
func (c *Client) read(s net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		a, ok := from.(*net.UDPAddr)
		if err != nil || !ok {
			if !c.pause() { // an ICMP error of an earlier packet, or memory is short
				return
			}
			continue
		}
		p := a.AddrPort()
		c.events <- Received{From: netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), Msg: append([]byte(nil), b[:n]...)}
	}
}

// pause keeps an error that repeats itself from taking all time.
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
				// What cannot be sent is as lost as what is lost on the way: it is sent again.
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

// fetch asks the router over HTTP. There are at most a few at a time, as the machine waits for one before the next.
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
		req.Header["SOAPAction"] = []string{`"` + f.Action + `"`} // some routers know it in this case only
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	_ = res.Body.Close() // it was only read
	// A service answers with status 500 when it says what is wrong.
	return body, err == nil && (res.StatusCode == http.StatusOK || res.StatusCode == http.StatusInternalServerError)
}

// leave deletes the mapping and waits for all goroutines.
func (c *Client) leave() {
	c.step(Stop{})
	c.fetches.Wait()
	c.closeSockets()
	c.timer.Stop()
}
