package proto

import (
	"cmp"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// RelayKeySize is the length of a relay's key.
const RelayKeySize = 32

// Relay is a server that forwards sealed packets between nodes that cannot reach each other. It can read none of them.
type Relay struct {
	ID   NodeID
	Name string // for people
	// Region is its location, for people and for choosing among relays of the same latency; may be empty.
	Region string
	// Key is its X25519 key, generated at each start of the relay. Sessions over UDP are agreed with it.
	Key [RelayKeySize]byte
	// UDPPort is the port of its UDP socket; 0 means none. UDP lists its addresses; if empty, they are those of the hosts in URLs.
	UDPPort uint16
	UDP     []netip.Addr
	// URLs are https://HOST[:PORT], where it accepts streams.
	URLs []string
}

// Equal reports whether two relay descriptions are the same.
func (r *Relay) Equal(o *Relay) bool {
	return r.ID == o.ID && r.Name == o.Name && r.Region == o.Region && r.Key == o.Key && r.UDPPort == o.UDPPort &&
		slices.Equal(r.UDP, o.UDP) && slices.Equal(r.URLs, o.URLs)
}

// Validate returns what is wrong with the description of a relay.
func (r *Relay) Validate() error {
	switch {
	case r.ID == 0:
		return invalid("relay without an id")
	case !ValidText(r.Name, MaxName) || (r.Region != "" && !ValidText(r.Region, MaxName)):
		return invalid("relay %s: a name or region that is empty, too long or not printable", r.ID)
	case len(r.UDP) > MaxRelayAddrs || len(r.URLs) > MaxRelayURLs:
		return invalid("relay %s: %d addresses and %d URLs, at most %d and %d", r.ID, len(r.UDP), len(r.URLs), MaxRelayAddrs, MaxRelayURLs)
	case len(r.UDP)+len(r.URLs) == 0:
		return invalid("relay %s: neither an address nor a URL", r.ID)
	case r.UDPPort != 0 && r.Key == [RelayKeySize]byte{}:
		return invalid("relay %s: UDP port %d, but no key to agree on sessions with", r.ID, r.UDPPort)
	}
	for _, a := range r.UDP {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return invalid("relay %s: address %s", r.ID, a)
		}
	}
	for _, s := range r.URLs {
		if !relayURL(s) {
			return invalid("relay %s: URL %q: want https://HOST[:PORT]", r.ID, shorten(s))
		}
	}
	return nil
}

// relayURL reports whether s is https://HOST[:PORT], perhaps with a slash, and nothing else.
func relayURL(s string) bool {
	if len(s) > MaxName || strings.ContainsAny(s, "?#@") {
		return false
	}
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && strings.Trim(u.Path, "/") == ""
}

func checkRelays(relays []Relay) error {
	if len(relays) > MaxRelays {
		return invalid("%d relays, at most %d", len(relays), MaxRelays)
	}
	for i := range relays {
		if err := relays[i].Validate(); err != nil {
			return err
		}
		if i > 0 && cmp.Compare(relays[i-1].ID, relays[i].ID) >= 0 {
			return invalid("relays are not sorted, or name %s twice", relays[i].ID)
		}
	}
	return nil
}
