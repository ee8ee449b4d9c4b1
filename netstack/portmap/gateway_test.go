package portmap_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

func addr(s string) netip.Addr      { return netip.MustParseAddr(s) }
func udp(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }

var (
	gatewayAddr = addr("192.168.1.1")
	laptopAddr  = addr("192.168.1.2")
	outside     = addr("203.0.113.1")
)

const laptopPort = 41641

// gateway is a router that speaks the protocols it is told to, with the mappings of a simulated NAT behind it.
type gateway struct {
	t    *testing.T
	nat  *sim.NAT
	host *sim.Host
	ctl  *sim.UDPConn

	mu     sync.Mutex
	speaks map[portmap.Protocol]bool
	result byte // result code of PCP and NAT-PMP answers
	life   uint32
	up     time.Time      // when it started
	taken  int            // how often UPnP still reports that a port is taken
	asked  map[string]int // number of requests by kind
	public netip.Addr     // address that UPnP reports
	web    string         // where UPnP is served
	unweb  func() error   // stops serving it
	moved  string         // control URL that UPnP reports, if set

	done []func() error
	wg   sync.WaitGroup
}

func newGateway(t *testing.T, nat *sim.NAT, speaks ...portmap.Protocol) *gateway {
	t.Helper()
	g := &gateway{
		t: t, nat: nat, host: nat.Host("gateway", gatewayAddr), speaks: map[portmap.Protocol]bool{}, life: 7200, public: outside,
		up: time.Now().Add(-1000 * time.Second), asked: map[string]int{},
	}
	for _, p := range speaks {
		g.speaks[p] = true
	}
	g.ctl = g.listen(5351, g.control)
	g.listen(1900, g.search)
	g.serveAt("192.168.1.1:5000")
	g.done = append(g.done, func() error { return g.unweb() })
	return g
}

// serveAt starts UPnP at an address.
func (g *gateway) serveAt(at string) {
	g.t.Helper()
	l, err := g.host.Listen("tcp", at)
	if err != nil {
		g.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(g.serve)}
	g.wg.Go(func() { _ = s.Serve(l) }) // until it is closed
	g.change(func() { g.web, g.unweb = at, s.Close })
}

// restart drops all mappings and starts UPnP at another address.
func (g *gateway) restart(at string) {
	g.t.Helper()
	if err := g.unweb(); err != nil {
		g.t.Fatal(err)
	}
	g.reboot()
	g.serveAt(at)
}

func (g *gateway) listen(port uint16, f func(c *sim.UDPConn, msg []byte, from netip.AddrPort)) *sim.UDPConn {
	g.t.Helper()
	c, err := g.host.ListenUDP(port)
	if err != nil {
		g.t.Fatal(err)
	}
	g.wg.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			g.mu.Lock()
			f(c, b[:n], from.(*net.UDPAddr).AddrPort())
			g.mu.Unlock()
		}
	})
	g.done = append(g.done, c.Close)
	return c
}

func (g *gateway) close() {
	for _, f := range g.done {
		if err := f(); err != nil {
			g.t.Error(err)
		}
	}
	g.wg.Wait()
}

func (g *gateway) count(what string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[what]
}

// change changes the router under its lock.
func (g *gateway) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// reboot drops all mappings and restarts the epoch. It announces nothing.
func (g *gateway) reboot() {
	g.nat.Reboot()
	g.change(func() { g.up = time.Now() })
}

func (g *gateway) epoch() uint32 { return uint32(time.Since(g.up) / time.Second) }

// announcement returns the message that PCP multicasts after a reboot.
func (g *gateway) announcement() []byte {
	b := make([]byte, 24)
	b[0], b[1] = 2, 0x80
	binary.BigEndian.PutUint32(b[8:], g.epoch())
	return b
}

// control answers PCP and NAT-PMP requests.
func (g *gateway) control(c *sim.UDPConn, msg []byte, from netip.AddrPort) {
	if !g.speaks[portmap.PCP] && !g.speaks[portmap.NATPMP] {
		return
	}
	version := byte(0)
	if g.speaks[portmap.PCP] {
		version = 2
	}
	out := make([]byte, 8)
	switch {
	case msg[0] != version:
		out[0], out[1], out[3] = version, msg[1]|0x80, 1
	case version == 2 && len(msg) == 60 && msg[1] == 1:
		g.asked["PCP"]++
		out = append([]byte(nil), msg...)
		out[1] |= 0x80
		out[3] = g.result
		life := min(binary.BigEndian.Uint32(msg[4:]), g.life)
		inside := netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(msg[40:]))
		ext, ok := g.forward(inside, binary.BigEndian.Uint16(msg[42:]), life)
		if !ok {
			out[3] = 8
		}
		binary.BigEndian.PutUint32(out[4:], life)
		binary.BigEndian.PutUint32(out[8:], g.epoch())
		clear(out[12:24])
		binary.BigEndian.PutUint16(out[42:], ext.Port())
		a := ext.Addr().As16()
		copy(out[44:], a[:])
	case version == 0 && msg[1] == 0:
		out = append(out, outside.AsSlice()...)
		out[1] = 0x80
		binary.BigEndian.PutUint32(out[4:], g.epoch())
	case version == 0 && msg[1] == 1 && len(msg) == 12:
		g.asked["NAT-PMP"]++
		life := min(binary.BigEndian.Uint32(msg[8:]), g.life)
		inside := netip.AddrPortFrom(from.Addr(), binary.BigEndian.Uint16(msg[4:]))
		ext, _ := g.forward(inside, binary.BigEndian.Uint16(msg[6:]), life)
		out[1], out[3] = 0x81, g.result
		binary.BigEndian.PutUint32(out[4:], g.epoch())
		out = append(out, msg[4:6]...)
		out = binary.BigEndian.AppendUint16(out, ext.Port())
		out = binary.BigEndian.AppendUint32(out, life)
	default:
		return
	}
	_, _ = c.WriteTo(out, udp(from)) // an error means silence
}

func (g *gateway) forward(inside netip.AddrPort, port uint16, life uint32) (netip.AddrPort, bool) {
	if g.result != 0 {
		return netip.AddrPort{}, true
	}
	ext, ok := g.nat.Forward(inside, port, time.Duration(life)*time.Second)
	if !ok {
		ext, ok = g.nat.Forward(inside, 0, time.Duration(life)*time.Second)
	}
	return ext, ok
}

func (g *gateway) search(c *sim.UDPConn, msg []byte, from netip.AddrPort) {
	if g.speaks[portmap.UPnP] && strings.Contains(string(msg), "M-SEARCH") {
		g.asked["M-SEARCH"]++
		answer := "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLocation: http://" + g.web + "/root.xml\r\n\r\n"
		_, _ = c.WriteTo([]byte(answer), udp(from)) // an error means silence
	}
}

// serve is the UPnP service.
func (g *gateway) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Method == http.MethodGet {
		control := "/control"
		if g.moved != "" {
			control = g.moved
		}
		fmt.Fprintf(w, `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceList><device><deviceList>`+
			`<device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>`+
			`<controlURL>%s</controlURL></service></serviceList></device></deviceList></device></deviceList></device></root>`, control)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		g.t.Error(err)
	}
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	g.asked[action]++
	fault := func(code int) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><detail>`+
			`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code)
	}
	content := ""
	port, _ := strconv.Atoi(value(body, "NewExternalPort"))
	lease, _ := strconv.Atoi(value(body, "NewLeaseDuration"))
	inside := netip.AddrPortFrom(laptopAddr, laptopPort)
	switch action {
	case "GetExternalIPAddress":
		content = "<NewExternalIPAddress>" + g.public.String() + "</NewExternalIPAddress>"
	case "AddPortMapping":
		switch {
		case g.taken > 0:
			g.taken--
			fault(718)
			return
		case g.life == 0 && lease != 0:
			fault(725)
			return
		case g.result != 0:
			fault(606)
			return
		}
		if lease == 0 {
			lease = 1 << 30
		}
		if _, ok := g.nat.Forward(inside, uint16(port), time.Duration(lease)*time.Second); !ok {
			fault(718)
			return
		}
	case "DeletePortMapping":
		g.nat.Forward(inside, uint16(port), 0)
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>`+
		`<u:%[1]sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">%[2]s</u:%[1]sResponse></s:Body></s:Envelope>`, action, content)
}

// value returns the content of an element in a body.
func value(body []byte, name string) string {
	_, rest, _ := strings.Cut(string(body), "<"+name+">")
	v, _, _ := strings.Cut(rest, "<")
	return v
}
