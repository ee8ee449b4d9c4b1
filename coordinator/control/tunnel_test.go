package control

import (
	"net"
	"testing"
)

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// TestProxiesAreNoEndpoints checks that the address of a proxy that terminates TLS is not taken for a node's endpoint.
func TestProxiesAreNoEndpoints(t *testing.T) {
	plain := from{addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}}
	if got := remote(plain); got.String() != "192.0.2.1:443" {
		t.Errorf("a plain connection comes from %s", got)
	}
	for name, c := range map[string]*tunnelled{"Upgrade": {Conn: plain}, "WebSocket": {below: &guest{Conn: plain}}} {
		if got := remote(c); got.IsValid() || c.RemoteAddr().String() != "through 192.0.2.1:443" {
			t.Errorf("%s: taken for %s, shown as %s", name, got, c.RemoteAddr())
		}
	}
}
