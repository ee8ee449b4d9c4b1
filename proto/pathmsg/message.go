package pathmsg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TxID ties a Pong to its Ping. It is random.
type TxID [12]byte

// Message is a Ping, Pong, Offer or Punch.
type Message interface {
	kind() byte
	appendBody(b []byte) []byte
}

// Ping asks whether a path works. Size is the length of the message, padding included; if it is less than a Ping needs, the
// Ping is as short as possible.
type Ping struct {
	TxID TxID
	Node proto.NodeID // the sender
	Size int
}

// Pong answers a Ping.
type Pong struct {
	TxID     TxID
	Observed netip.AddrPort // the source of the Ping; zero if that was a relay
}

// Offer announces where else its sender may be reached, and asks for pings there.
type Offer struct {
	Candidates []netip.AddrPort // at most MaxCandidates
	NAT        NATClass
	Relays     []RelayRTT // at most MaxRelays, nearest first
}

// Punch asks a peer to guess the ports that the sender's NAT assigns to sockets which it opens toward an address of the peer. A
// peer that does so sends the message back.
type Punch struct{ Toward netip.AddrPort }

// RelayRTT is the distance to a relay.
type RelayRTT struct {
	Relay proto.NodeID
	RTT   time.Duration // whole milliseconds, 65 s at most
}

// NATClass is what a node knows about the NAT that it is behind.
type NATClass uint8

// The classes.
const (
	NATUnknown NATClass = iota
	NATNone             // none
	NATEasy             // the same mapped address for all destinations
	NATHard             // another mapped address for each destination
	NATBlocked          // no UDP
)

func (c NATClass) String() string {
	switch c {
	case NATNone:
		return "none"
	case NATEasy:
		return "easy"
	case NATHard:
		return "hard"
	case NATBlocked:
		return "UDP blocked"
	}
	return "unknown"
}

const (
	// MaxCandidates and MaxRelays bound an Offer.
	MaxCandidates = 16
	MaxRelays     = 16
	// MaxPing is the maximum length of a Ping.
	MaxPing = 9000
)

const (
	typePing  = 1
	typePong  = 2
	typeOffer = 3
	typePunch = 4

	addrSize  = 18
	pingSize  = 12 + 8
	pongSize  = 12 + addrSize
	offerHead = 3
	rttSize   = 10
)

// ErrMalformed means that a message was sealed by a peer but makes no sense.
var ErrMalformed = errors.New("malformed path message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func (Ping) kind() byte  { return typePing }
func (Pong) kind() byte  { return typePong }
func (Offer) kind() byte { return typeOffer }
func (Punch) kind() byte { return typePunch }

func (p Ping) appendBody(b []byte) []byte {
	at := len(b)
	b = append(b, p.TxID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Node))
	room := min(max(p.Size-Overhead, pongSize), MaxPing-Overhead) - (len(b) - at)
	return append(b, make([]byte, room)...)
}

func (p Pong) appendBody(b []byte) []byte {
	b = append(b, p.TxID[:]...)
	return appendAddr(b, p.Observed)
}

func (p Punch) appendBody(b []byte) []byte { return appendAddr(b, p.Toward) }

func (o Offer) appendBody(b []byte) []byte {
	candidates := o.Candidates[:min(len(o.Candidates), MaxCandidates)]
	relays := o.Relays[:min(len(o.Relays), MaxRelays)]
	b = append(b, byte(o.NAT), byte(len(candidates)), byte(len(relays)))
	for _, a := range candidates {
		b = appendAddr(b, a)
	}
	for _, r := range relays {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Relay))
		b = binary.BigEndian.AppendUint16(b, uint16(min(max(r.RTT.Milliseconds(), 0), 0xffff)))
	}
	return b
}

// parse decodes a body.
func parse(kind byte, b []byte) (Message, error) {
	switch kind {
	case typePing:
		return parsePing(b)
	case typePong:
		if len(b) != pongSize {
			return nil, malformed("Pong of %d bytes", len(b))
		}
		from, err := readAddr(b[12:])
		return Pong{TxID: TxID(b[:12]), Observed: from}, err
	case typeOffer:
		return parseOffer(b)
	case typePunch:
		if len(b) != addrSize {
			return nil, malformed("Punch of %d bytes", len(b))
		}
		toward, err := readAddr(b)
		if err != nil || !toward.IsValid() {
			return nil, malformed("Punch toward no address")
		}
		return Punch{toward}, nil
	}
	return nil, malformed("type %d", kind)
}

func parsePing(b []byte) (Message, error) {
	if len(b) < pongSize || len(b) > MaxPing-Overhead {
		return nil, malformed("Ping of %d bytes", len(b))
	}
	if slices.ContainsFunc(b[pingSize:], func(x byte) bool { return x != 0 }) {
		return nil, malformed("Ping with padding that is not zero")
	}
	return Ping{TxID: TxID(b[:12]), Node: proto.NodeID(binary.BigEndian.Uint64(b[12:])), Size: len(b) + Overhead}, nil
}

func parseOffer(b []byte) (Message, error) {
	if len(b) < offerHead {
		return nil, malformed("Offer of %d bytes", len(b))
	}
	o := Offer{NAT: NATClass(b[0])}
	candidates, relays := int(b[1]), int(b[2])
	if o.NAT > NATBlocked || candidates > MaxCandidates || relays > MaxRelays || len(b) != offerHead+candidates*addrSize+relays*rttSize {
		return nil, malformed("Offer of %d bytes, %d candidates, %d relays, NAT %d", len(b), candidates, relays, b[0])
	}
	b = b[offerHead:]
	for range candidates {
		a, err := readAddr(b)
		if err != nil || !a.IsValid() {
			return nil, malformed("Offer with no address")
		}
		o.Candidates = append(o.Candidates, a)
		b = b[addrSize:]
	}
	for range relays {
		o.Relays = append(o.Relays, RelayRTT{
			Relay: proto.NodeID(binary.BigEndian.Uint64(b)), RTT: time.Duration(binary.BigEndian.Uint16(b[8:])) * time.Millisecond,
		})
		b = b[rttSize:]
	}
	return o, nil
}

// appendAddr appends an address; the zero one becomes zeros.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, addrSize)...)
	}
	x := a.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, x[:]...), a.Port())
}

// readAddr is the inverse of appendAddr. An address has only one encoding.
func readAddr(b []byte) (netip.AddrPort, error) {
	a, port := netip.AddrFrom16([16]byte(b[:16])), binary.BigEndian.Uint16(b[16:])
	switch {
	case a.IsUnspecified() && port == 0:
		return netip.AddrPort{}, nil
	case a.IsUnspecified() || port == 0:
		return netip.AddrPort{}, malformed("address %s, port %d", a, port)
	}
	return netip.AddrPortFrom(a.Unmap(), port), nil
}
