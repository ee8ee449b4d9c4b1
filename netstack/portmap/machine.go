package portmap

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// Event is an input to a Machine.
type Event interface{ event() }

// The events.
type (
	// Start requests a mapping, or checks on it again after the network changed.
	Start struct {
		Gateway netip.Addr // of the default route, of either family
		Local   netip.Addr // our address on the path there
		Port    uint16     // the UDP port to map
	}
	// Stop deletes the mapping.
	Stop struct{}
	// Received is a datagram received on one of the client's sockets.
	Received struct {
		From netip.AddrPort
		Msg  []byte
	}
	// Fetched is the result of a Fetch: the body, and whether the status was success or a service's own error.
	Fetched struct {
		ID   int
		Body []byte
		OK   bool
	}
	// Tick reports that the time of the last Wake has come.
	Tick struct{}
)

func (Start) event()    {}
func (Stop) event()     {}
func (Received) event() {}
func (Fetched) event()  {}
func (Tick) event()     {}

// Effect is an action for the caller to perform.
type Effect interface{ effect() }

// The effects.
type (
	// Send sends a datagram.
	Send struct {
		To  netip.AddrPort
		Msg []byte
	}
	// Fetch makes an HTTP request to the gateway: a POST with the SOAP action, or a GET if there is none.
	Fetch struct {
		ID     int
		URL    string
		Action string
		Body   string
	}
	// Wake requests a Tick; it replaces all earlier ones.
	Wake struct{ At time.Time }
	// Changed reports the new state.
	Changed struct{ State State }
)

func (Send) effect()    {}
func (Fetch) effect()   {}
func (Wake) effect()    {}
func (Changed) effect() {}

// Protocol is a port mapping protocol.
type Protocol string

// The protocols.
const (
	PCP    Protocol = "PCP"
	NATPMP Protocol = "NAT-PMP"
	UPnP   Protocol = "UPnP"
)

// State is the state of a mapping.
type State struct {
	Gateway  netip.Addr
	Protocol Protocol       // that the router speaks; empty if unknown
	External netip.AddrPort // invalid if there is no mapping
	Until    time.Time      // when the mapping expires unless renewed; zero means never
	Problem  string         // why there is no mapping
}

// Machine keeps one mapping of a UDP port.
//
//	off ──Start──► searching ─────────► held ──half of its lifetime──► renew
//	                │  │  └► describing ─┤▲                             │
//	                │  └───► natpmp ─────┘└── no answer: search again ◄─┘
//	                └──► failed, retried after an hour
type Machine struct {
	rnd   *rand.ChaCha8
	start Start
	stage stage
	state State
	next  time.Time // of the next Tick; zero means none
	tries int       // requests sent since the last answer
	nonce nonce
	// refusal is the reason why the router refused in this search; empty if it did not.
	refusal string

	clock clock
	// NAT-PMP reports the address and the port separately.
	addr netip.Addr
	port answer

	upnp upnp
}

type stage uint8

const (
	off stage = iota
	searching
	natpmp
	describing // UPnP
	held
	failed
)

const (
	lifetime   = 7200 // requested, in seconds
	minLife    = 10 * time.Second
	maxLife    = 24 * time.Hour
	searchLong = time.Hour // before the next search if no router was found
	fetchTime  = 5 * time.Second
)

// gaps are the delays after each request; after the last one the router counts as silent.
var gaps = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// NewMachine returns a Machine that is off. It derives nonces and ports from the secret seed.
func NewMachine(seed [32]byte) *Machine { return &Machine{rnd: rand.NewChaCha8(seed)} }

// Step handles an event and returns the actions to perform.
func (m *Machine) Step(now time.Time, e Event) []Effect {
	before, was := m.next, m.state
	var out []Effect
	switch e := e.(type) {
	case Start:
		out = m.begin(now, e)
	case Stop:
		out = m.stop()
	case Received:
		out = m.received(now, e)
	case Fetched:
		out = m.fetched(now, e)
	case Tick:
		if m.next.IsZero() || m.next.After(now) {
			before = time.Time{}
			break
		}
		out = m.tick(now)
	}
	if m.state != was {
		out = append(out, Changed{m.state})
	}
	if m.next != before && !m.next.IsZero() {
		out = append(out, Wake{m.next})
	}
	return out
}

func (m *Machine) begin(now time.Time, e Start) []Effect {
	if e == m.start && m.stage == held {
		return m.renew(now)
	}
	if e == m.start && (m.stage == searching || m.stage == natpmp || m.stage == describing) {
		return nil
	}
	if e != m.start {
		m.state = State{Gateway: e.Gateway}
	}
	m.start, m.clock = e, clock{}
	_, _ = m.rnd.Read(m.nonce[:]) // never fails
	if !(e.Gateway.Is4() && e.Local.Is4() || isV6(e.Gateway) && isV6(e.Local)) || e.Port == 0 {
		m.stage, m.next, m.state = off, time.Time{}, State{Problem: "there is no router"}
		return nil
	}
	return m.search(now)
}

// search looks for a router that speaks any of the protocols.
func (m *Machine) search(now time.Time) []Effect {
	m.stage, m.tries, m.refusal = searching, 0, ""
	m.addr, m.port, m.upnp = netip.Addr{}, answer{}, upnp{id: m.upnp.id}
	m.state = State{Gateway: m.start.Gateway, Problem: m.state.Problem}
	return m.request(now)
}

// request sends the request of the current stage, first or repeated.
func (m *Machine) request(now time.Time) []Effect {
	m.next = now.Add(gaps[min(m.tries, len(gaps)-1)])
	m.tries++
	to := netip.AddrPortFrom(m.start.Gateway, controlPort)
	pcp := Send{to, pcpRequest(m.start.Local, m.nonce, m.start.Port, lifetime, m.suggestion())}
	switch {
	case m.stage == searching && m.v6():
		return []Effect{pcp}
	case m.stage == searching:
		return append([]Effect{pcp}, m.seek()...)
	case m.stage == natpmp || m.state.Protocol == NATPMP:
		m.addr, m.port = netip.Addr{}, answer{}
		return []Effect{Send{to, appendAddrRequest(nil)}, Send{to, appendNATPMP(nil, m.start.Port, m.suggestion().Port(), lifetime)}}
	case m.state.Protocol == UPnP && m.upnp.sought:
		m.upnp.location = ""
		return m.seek()
	case m.state.Protocol == UPnP:
		m.next = now.Add(2 * fetchTime)
		return []Effect{m.outside()}
	}
	return []Effect{pcp}
}

// suggestion returns the external address to ask for: the one we have, or else our own port.
func (m *Machine) suggestion() netip.AddrPort {
	if m.state.External.IsValid() {
		return m.state.External
	}
	if m.v6() {
		return netip.AddrPortFrom(m.start.Local, m.start.Port) // nothing is translated
	}
	return netip.AddrPortFrom(netip.Addr{}, m.start.Port)
}

// v6 reports whether the router is an IPv6 firewall, which only PCP opens.
func (m *Machine) v6() bool { return isV6(m.start.Gateway) }

func isV6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// renew requests the mapping again.
func (m *Machine) renew(now time.Time) []Effect {
	m.tries = 0
	return m.request(now)
}

func (m *Machine) tick(now time.Time) []Effect {
	switch {
	case m.stage == failed:
		return m.search(now)
	case m.stage == off:
		m.next = time.Time{}
		return nil
	case m.tries < len(gaps) && m.stage != describing:
		return m.request(now)
	case (m.stage == searching || m.stage == natpmp) && m.upnp.location != "":
		return m.describe(now)
	case m.stage != held && m.v6():
		return m.fail(now, "the router does not answer to PCP")
	case m.stage != held:
		return m.fail(now, "the router does not answer to PCP, NAT-PMP or UPnP")
	}
	return m.unheard(now)
}

// unheard handles a renewal that got no answer: it tries again while there is time.
func (m *Machine) unheard(now time.Time) []Effect {
	if m.state.Protocol == UPnP && !m.upnp.sought {
		m.upnp.sought = true
		return m.renew(now)
	}
	left := m.state.Until.Sub(now)
	if m.state.Until.IsZero() || left < minLife {
		m.state.Problem = "the router did not renew the mapping"
		return m.search(now)
	}
	m.tries, m.next = 0, now.Add(left/2)
	return nil
}

// refused continues with UPnP after a refusal by PCP or NAT-PMP, as soon as the router is known to speak it.
func (m *Machine) refused(now time.Time, why string) []Effect {
	m.refusal = why
	switch {
	case m.stage == held:
		m.state.Problem = why
		return m.search(now)
	case m.upnp.location != "":
		return m.describe(now)
	}
	return nil
}

// fail gives up for a while. A reason that the router gave takes precedence over why.
func (m *Machine) fail(now time.Time, why string) []Effect {
	if m.state.Problem = why; m.refusal != "" {
		m.state.Problem = m.refusal
	}
	m.stage, m.next = failed, now.Add(searchLong)
	return nil
}

// hold records a mapping that the router granted.
func (m *Machine) hold(now time.Time, p Protocol, external netip.AddrPort, life time.Duration) {
	m.stage, m.tries, m.upnp.sought = held, 0, false
	m.state = State{Gateway: m.start.Gateway, Protocol: p, External: external}
	if life == 0 { // it never expires, says the router; but it may be lost with the router's state
		m.next = now.Add(searchLong)
		return
	}
	life = min(max(life, minLife), maxLife)
	m.state.Until, m.next = now.Add(life), now.Add(life/2)
}

// stop deletes the mapping without waiting for an answer.
func (m *Machine) stop() []Effect {
	was := m.state
	stage := m.stage
	to := netip.AddrPortFrom(m.start.Gateway, controlPort)
	m.stage, m.state, m.next = off, State{}, time.Time{}
	switch {
	case stage != held:
		return nil
	case was.Protocol == PCP:
		return []Effect{Send{to, pcpRequest(m.start.Local, m.nonce, m.start.Port, 0, netip.AddrPort{})}}
	case was.Protocol == NATPMP:
		return []Effect{Send{to, appendNATPMP(nil, m.start.Port, 0, 0)}}
	}
	return []Effect{m.remove(was.External.Port())}
}

// received handles a datagram. It ignores those that are not from the gateway.
func (m *Machine) received(now time.Time, e Received) []Effect {
	if m.stage == off || e.From.Addr().Unmap() != m.start.Gateway {
		return nil
	}
	if e.From.Port() != controlPort {
		if m.v6() {
			return nil
		}
		return m.found(now, e.Msg)
	}
	a, err := parseAnswer(e.Msg)
	if err != nil {
		return nil
	}
	switch {
	case a.version == versionPCP:
		return m.pcp(now, a)
	case m.v6():
		return nil // NAT-PMP is IPv4 only
	}
	return m.natpmp(now, a)
}

// pcp handles a PCP answer or announcement.
func (m *Machine) pcp(now time.Time, a answer) []Effect {
	if a.op == opAnnounce && m.stage == held && m.state.Protocol == PCP && m.tries == 0 && m.clock.wentBack(now, a.epoch) {
		return m.renew(now)
	}
	mine := a.nonce == m.nonce && a.internal == m.start.Port
	waits := m.stage == searching || m.stage == held && m.state.Protocol == PCP && m.tries > 0
	if a.op != opMap || !mine || !waits {
		return nil
	}
	m.clock.wentBack(now, a.epoch)
	switch {
	case a.result == 0 && a.lifetime > 0 && usable(a.external) && a.external.Addr().Is4() == !m.v6():
		m.hold(now, PCP, a.external, seconds(a.lifetime))
		return nil
	case a.result == 0:
		return m.refused(now, "the router's answer makes no sense")
	}
	return m.refused(now, a.reason())
}

// natpmp handles a NAT-PMP answer or announcement.
func (m *Machine) natpmp(now time.Time, a answer) []Effect {
	switch {
	case m.stage == searching && a.result == resultVersion:
		m.stage, m.tries = natpmp, 0
		return m.request(now)
	case m.stage == held && m.state.Protocol == NATPMP && m.tries == 0:
		if a.op == opAnnounce && a.result == 0 && m.clock.wentBack(now, a.epoch) {
			return m.renew(now)
		}
		return nil
	case m.stage != natpmp && m.stage != held, m.stage == held && m.state.Protocol != NATPMP:
		return nil
	case a.result == resultVersion, a.op != opAnnounce && a.op != opMap:
		return nil // to a repeated PCP request, or to nothing of ours
	case a.result != 0:
		return m.refused(now, a.reason())
	}
	m.clock.wentBack(now, a.epoch)
	switch {
	case a.op == opAnnounce:
		m.addr = a.external.Addr()
	case a.op == opMap && a.internal == m.start.Port && a.lifetime > 0:
		m.port = a
	}
	if external := netip.AddrPortFrom(m.addr, m.port.external.Port()); usable(external) {
		m.hold(now, NATPMP, external, seconds(m.port.lifetime))
	}
	return nil
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// usable reports whether a can be an external address.
func usable(a netip.AddrPort) bool {
	ip := a.Addr()
	if isV6(ip) && (!ip.IsGlobalUnicast() || ip.IsPrivate()) {
		return false
	}
	return ip.IsValid() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast()
}

// clock tracks the gateway's epoch.
type clock struct {
	epoch uint32
	at    time.Time
}

// wentBack reports whether the gateway lost its state since its last answer (RFC 6887, section 8.5).
func (c *clock) wentBack(now time.Time, epoch uint32) bool {
	was := *c
	*c = clock{epoch, now}
	if was.at.IsZero() {
		return false
	}
	theirs, ours := int64(epoch)-int64(was.epoch), int64(now.Sub(was.at)/time.Second)
	return theirs < -1 || ours+2 < theirs-theirs/16 || theirs+2 < ours-ours/16
}
