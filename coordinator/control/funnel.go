package control

import (
	"net"
	"sync"
)

// funnel passes connections to net/http after their handshake, as a listener.
type funnel struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newFunnel() *funnel { return &funnel{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (f *funnel) put(c net.Conn) bool {
	select {
	case f.conns <- c:
		return true
	case <-f.closed:
		return false
	}
}

// Accept implements net.Listener.
func (f *funnel) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *funnel) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Addr implements net.Listener.
func (f *funnel) Addr() net.Addr { return nowhere{} }

type nowhere struct{}

func (nowhere) Network() string { return "funnel" }
func (nowhere) String() string  { return "funnel" }
