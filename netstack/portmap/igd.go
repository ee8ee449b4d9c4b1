package portmap

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"
)

// upnp is the progress with a router that speaks UPnP.
type upnp struct {
	location string // URL of its description
	sought   bool   // a renewal failed, so that the location is searched for again: it may have moved to another port
	service  service
	addr     netip.Addr // external
	port     uint16     // external port to request
	tries    int        // ports that turned out to be taken
	forever  bool       // the router supports only permanent mappings
	doing    string     // the action in flight, or "" for the description
	id       int        // of the fetch in flight
}

// upnpLease is the lease duration to request, in seconds.
const upnpLease = 3600

// maxConflicts is how many other external ports are tried when one is taken.
const maxConflicts = 4

// seek searches for routers that speak UPnP.
func (m *Machine) seek() []Effect {
	near := netip.AddrPortFrom(m.start.Gateway, ssdp.Port())
	return []Effect{Send{ssdp, search(ssdp)}, Send{near, search(near)}}
}

// found handles an answer to a search. The router may answer several times.
func (m *Machine) found(now time.Time, msg []byte) []Effect {
	location, err := parseSearch(msg, m.start.Gateway)
	renews := m.stage == held && m.state.Protocol == UPnP && m.tries > 0
	if err != nil || m.upnp.location != "" || m.stage != searching && !renews {
		return nil
	}
	m.upnp.location = location
	switch {
	case renews:
		m.next = now.Add(3 * fetchTime)
		return []Effect{m.fetch(Fetch{URL: location})}
	case m.refusal != "":
		return m.describe(now)
	}
	return nil
}

// describe fetches the router's description of itself.
func (m *Machine) describe(now time.Time) []Effect {
	m.stage, m.next = describing, now.Add(3*fetchTime)
	m.upnp.port = m.start.Port
	return []Effect{m.fetch(Fetch{URL: m.upnp.location})}
}

func (m *Machine) fetch(f Fetch) Fetch {
	m.upnp.id++
	f.ID, m.upnp.doing = m.upnp.id, f.Action
	return f
}

func (m *Machine) call(action string, args ...[2]string) Fetch {
	s := m.upnp.service
	f := m.fetch(Fetch{URL: s.control, Action: s.kind + "#" + action, Body: s.soap(action, args...)})
	m.upnp.doing = action
	return f
}

// outside asks for the external address, at each renewal too: the provider may have changed it.
func (m *Machine) outside() Fetch { return m.call("GetExternalIPAddress") }

func (m *Machine) add() Fetch {
	lease := upnpLease
	if m.upnp.forever {
		lease = 0
	}
	return m.call("AddPortMapping",
		[2]string{"NewRemoteHost", ""},
		[2]string{"NewExternalPort", strconv.Itoa(int(m.upnp.port))},
		[2]string{"NewProtocol", "UDP"},
		[2]string{"NewInternalPort", strconv.Itoa(int(m.start.Port))},
		[2]string{"NewInternalClient", m.start.Local.String()},
		[2]string{"NewEnabled", "1"},
		[2]string{"NewPortMappingDescription", "redoubt"},
		[2]string{"NewLeaseDuration", strconv.Itoa(lease)})
}

func (m *Machine) remove(port uint16) Fetch {
	return m.call("DeletePortMapping",
		[2]string{"NewRemoteHost", ""},
		[2]string{"NewExternalPort", strconv.Itoa(int(port))},
		[2]string{"NewProtocol", "UDP"})
}

// fetched handles an answer of the router over HTTP.
func (m *Machine) fetched(now time.Time, e Fetched) []Effect {
	if e.ID != m.upnp.id || (m.stage != describing && (m.stage != held || m.state.Protocol != UPnP || m.tries == 0)) {
		return nil
	}
	if m.upnp.doing == "" {
		return m.described(now, e)
	}
	r, err := parseReply(e.Body)
	if !e.OK || err != nil {
		return m.upnpFailed(now, "the router's UPnP service does not answer")
	}
	if m.upnp.doing == "GetExternalIPAddress" {
		if m.upnp.addr = r.address; r.code != 0 || !usable(netip.AddrPortFrom(r.address, 1)) {
			return m.upnpFailed(now, "the router has no outside address")
		}
		return []Effect{m.add()}
	}
	switch {
	case r.code == 0:
		life := time.Duration(upnpLease) * time.Second
		if m.upnp.forever {
			life = 0
		}
		m.hold(now, UPnP, netip.AddrPortFrom(m.upnp.addr, m.upnp.port), life)
		return nil
	case r.code == upnpPermanent && !m.upnp.forever:
		m.upnp.forever = true
		return []Effect{m.add()}
	case r.code == upnpConflict && m.upnp.tries < maxConflicts:
		m.upnp.tries++
		var b [2]byte
		_, _ = m.rnd.Read(b[:]) // never fails
		m.upnp.port = 1024 + binary.BigEndian.Uint16(b[:])%(65535-1024)
		return []Effect{m.add()}
	case r.code == upnpConflict || r.code == upnpSamePorts:
		return m.upnpFailed(now, "the router has no port left for us")
	}
	return m.upnpFailed(now, "the router refuses port mappings")
}

func (m *Machine) described(now time.Time, e Fetched) []Effect {
	s, err := parseDescription(e.Body, m.upnp.location, m.start.Gateway)
	if !e.OK || err != nil {
		return m.upnpFailed(now, "the router's UPnP description cannot be read")
	}
	m.upnp.service = s
	return []Effect{m.outside()}
}

// upnpFailed gives up on UPnP; a mapping that could not be renewed may live on.
func (m *Machine) upnpFailed(now time.Time, why string) []Effect {
	if m.stage == held {
		return m.unheard(now)
	}
	return m.fail(now, why)
}
