package relaymsg

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Kind is the first byte of a datagram or frame. The bytes 0xE0 to 0xEF belong to this package on a UDP port that is shared
// with other protocols.
type Kind uint8

// The kinds.
const (
	Data Kind = 0xE0 + iota
	DataFor
	Learned
	Unknown
	Unreached
	Ping
	Pong
	Drain
	Bye
	Hello
	Challenge
	Bind
	Bound
	Rebind
	Refused
)

// Sizes in bytes.
const (
	HeaderSize = 8
	PeerSize   = 8 // after the header of DataFor
	TagSize    = 16
	CookieSize = 16
	TokenSize  = 8
	KeySize    = 32
	// HelloSize is the length of a Hello: at least that of its answer.
	HelloSize = 48
	// MaxControl is the length of the longest datagram without packets: a Bind with a long certificate.
	MaxControl = 4096
	// MaxSignature bounds the signature of a Bind (ECDSA P-256 in ASN.1).
	MaxSignature = 80
	addrSize     = 18
)

// MaxNumber is the greatest peer number.
const MaxNumber = 1<<24 - 1

// ErrMalformed means that bytes are not a message of this package.
var ErrMalformed = errors.New("malformed relay message")

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, a...))
}

// Is reports whether a datagram belongs to this package, by its first byte.
func Is(b []byte) bool { return len(b) >= HeaderSize && b[0]&0xF0 == 0xE0 }

// Header is the beginning of a datagram.
type Header struct {
	Kind    Kind
	Number  uint32 // of a peer, 24 bits
	Session uint32
}

// Put writes the header over the first HeaderSize bytes of b.
func (h Header) Put(b []byte) {
	binary.BigEndian.PutUint64(b, uint64(h.Kind)<<56|uint64(h.Number&MaxNumber)<<32|uint64(h.Session))
}

// ParseHeader parses the header of a datagram for which Is returned true.
func ParseHeader(b []byte) Header {
	v := binary.BigEndian.Uint64(b)
	return Header{Kind: Kind(v >> 56), Number: uint32(v>>32) & MaxNumber, Session: uint32(v)}
}

// PutPeer writes a peer's ID over b, in the form that follows the header of a DataFor.
func PutPeer(b []byte, id proto.NodeID) { binary.BigEndian.PutUint64(b, uint64(id)) }

// Peer returns the ID that follows the header of a DataFor, a Learned or an Unreached; 0, which is no node, if it is truncated.
func Peer(b []byte) proto.NodeID {
	if len(b) < HeaderSize+PeerSize {
		return 0
	}
	return proto.NodeID(binary.BigEndian.Uint64(b[HeaderSize:]))
}

// Reason is why something is not done.
type Reason uint8

// The reasons.
const (
	ReasonUnknownSession Reason = iota + 1 // the relay does not know the session, for example after a restart
	ReasonTaken                            // another node has a session with this number
	ReasonCertificate                      // the certificate or the signature is invalid
	ReasonKey                              // the node knows a different key of the relay than its current one
	ReasonFull                             // the relay accepts no more sessions
	ReasonRate                             // too many attempts
	ReasonDraining                         // the relay is about to stop
	ReasonNotPermitted                     // the mesh's policy does not connect the two nodes
	ReasonAway                             // the peer has no session with this relay
)

func (r Reason) String() string {
	switch r {
	case ReasonUnknownSession:
		return "unknown session"
	case ReasonTaken:
		return "session number taken"
	case ReasonCertificate:
		return "certificate refused"
	case ReasonKey:
		return "the relay has another key now"
	case ReasonFull:
		return "relay is full"
	case ReasonRate:
		return "too many attempts"
	case ReasonDraining:
		return "relay is about to stop"
	case ReasonNotPermitted:
		return "not permitted by the policy"
	case ReasonAway:
		return "peer is not at this relay"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Message is a datagram without packets. Its kind determines which fields are used; see the package comment.
type Message struct {
	Header
	Peer    proto.NodeID
	Reason  Reason
	Seconds uint32
	Token   uint64 // of Ping and Pong; the counter of Rebind
	Cookie  [CookieSize]byte
	Addr    netip.AddrPort
	BindInfo
}

// BindInfo holds the fields that only a Bind has.
type BindInfo struct {
	RelayKey    [KeySize]byte // the relay's key as known to the node
	Ephemeral   [KeySize]byte
	Certificate []byte // DER
	Signature   []byte
}

// tagged reports whether datagrams of a kind end with a tag.
func (k Kind) tagged() bool {
	switch k {
	case Learned, Unknown, Unreached, Ping, Pong, Drain, Bye, Bound, Rebind:
		return true
	}
	return false
}

// Append encodes a message without packets; key is the session's, and fromRelay reports whether the relay is the sender.
func Append(b []byte, m *Message, key *Key, fromRelay bool) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	m.Put(b[start:])
	b = m.appendBody(b)
	if m.Kind.tagged() {
		b = append(b, key.tag(b[start:], fromRelay)...)
	}
	return b
}

func (m *Message) appendBody(b []byte) []byte {
	switch m.Kind {
	case Learned:
		b = binary.BigEndian.AppendUint64(b, uint64(m.Peer))
	case Unreached:
		b = append(binary.BigEndian.AppendUint64(b, uint64(m.Peer)), byte(m.Reason))
	case Ping, Pong:
		b = binary.BigEndian.AppendUint64(b, m.Token)
	case Drain:
		b = binary.BigEndian.AppendUint32(b, m.Seconds)
	case Hello:
		b = append(b, make([]byte, HelloSize-HeaderSize)...)
	case Challenge:
		b = append(b, m.Cookie[:]...)
	case Bind:
		b = append(append(append(b, m.Cookie[:]...), m.RelayKey[:]...), m.Ephemeral[:]...)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m.Certificate))), m.Certificate...)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m.Signature))), m.Signature...)
	case Bound:
		b = appendAddr(binary.BigEndian.AppendUint32(b, m.Seconds), m.Addr)
	case Rebind:
		b = binary.BigEndian.AppendUint64(append(b, m.Cookie[:]...), m.Token)
	case Refused:
		b = binary.BigEndian.AppendUint32(append(b, byte(m.Reason)), m.Seconds)
	}
	return b
}

// bodySize returns the length of a body whose length is fixed.
func (k Kind) bodySize() int {
	switch k {
	case Learned, Ping, Pong:
		return 8
	case Unreached:
		return 9
	case Drain:
		return 4
	case Challenge:
		return CookieSize
	case Bound:
		return 4 + addrSize
	case Rebind:
		return CookieSize + 8
	case Refused:
		return 5
	case Hello:
		return HelloSize - HeaderSize
	}
	return 0
}

// Parse decodes a datagram without packets. It does not check the tag: see Verify. Certificate and Signature point into b.
func Parse(b []byte) (Message, error) {
	if !Is(b) || len(b) > MaxControl {
		return Message{}, malformed("%d bytes", len(b))
	}
	m := Message{Header: ParseHeader(b)}
	body := b[HeaderSize:]
	if m.Kind.tagged() {
		if len(body) < TagSize {
			return Message{}, malformed("kind %#x without a tag", uint8(m.Kind))
		}
		body = body[:len(body)-TagSize]
	}
	switch m.Kind {
	case Bind:
		return m, m.parseBind(body)
	case Learned, Unknown, Unreached, Ping, Pong, Drain, Bye, Hello, Challenge, Bound, Rebind, Refused:
		if len(body) != m.Kind.bodySize() {
			return Message{}, malformed("kind %#x with %d bytes", uint8(m.Kind), len(body))
		}
		return m, m.parseFixed(body)
	}
	return Message{}, malformed("kind %#x", uint8(m.Kind))
}

func (m *Message) parseFixed(b []byte) (err error) {
	switch m.Kind {
	case Learned:
		m.Peer = proto.NodeID(binary.BigEndian.Uint64(b))
	case Unreached:
		m.Peer, m.Reason = proto.NodeID(binary.BigEndian.Uint64(b)), Reason(b[8])
	case Ping, Pong:
		m.Token = binary.BigEndian.Uint64(b)
	case Drain:
		m.Seconds = binary.BigEndian.Uint32(b)
	case Challenge:
		m.Cookie = [CookieSize]byte(b)
	case Bound:
		m.Seconds = binary.BigEndian.Uint32(b)
		m.Addr, err = parseAddr(b[4:])
	case Rebind:
		m.Cookie, m.Token = [CookieSize]byte(b), binary.BigEndian.Uint64(b[CookieSize:])
	case Refused:
		m.Reason, m.Seconds = Reason(b[0]), binary.BigEndian.Uint32(b[1:])
	}
	return err
}

func (m *Message) parseBind(b []byte) error {
	if len(b) < CookieSize+2*KeySize {
		return malformed("bind of %d bytes", len(b))
	}
	m.Cookie, b = [CookieSize]byte(b), b[CookieSize:]
	m.RelayKey, b = [KeySize]byte(b), b[KeySize:]
	m.Ephemeral, b = [KeySize]byte(b), b[KeySize:]
	var ok bool
	if m.Certificate, b, ok = takeText(b, MaxControl); !ok || len(m.Certificate) == 0 {
		return malformed("bind without a certificate")
	}
	if m.Signature, b, ok = takeText(b, MaxSignature); !ok || len(m.Signature) == 0 || len(b) != 0 {
		return malformed("bind without a signature, or with something after it")
	}
	return nil
}

func takeText(b []byte, most int) (text, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > most || len(b)-2 < n {
		return nil, nil, false
	}
	return b[2 : 2+n : 2+n], b[2+n:], true
}

// appendAddr appends 16 bytes of address, IPv4 mapped into IPv6, and a port.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	ip := netip.IPv6Unspecified().As16()
	if a.IsValid() {
		ip = a.Addr().As16()
	}
	return binary.BigEndian.AppendUint16(append(b, ip[:]...), a.Port())
}

// parseAddr is the inverse of appendAddr; an unspecified address means none.
func parseAddr(b []byte) (netip.AddrPort, error) {
	if len(b) != addrSize {
		return netip.AddrPort{}, malformed("an address of %d bytes", len(b))
	}
	ip := netip.AddrFrom16([16]byte(b)).Unmap()
	port := binary.BigEndian.Uint16(b[16:])
	if ip.IsUnspecified() {
		if ip.Is4() || port != 0 {
			return netip.AddrPort{}, malformed("an unspecified address")
		}
		return netip.AddrPort{}, nil
	}
	return netip.AddrPortFrom(ip, port), nil
}
