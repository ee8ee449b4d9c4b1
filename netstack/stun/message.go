package stun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// TxID identifies a request and its answer.
type TxID [12]byte

// Kind is the type of a message.
type Kind uint16

// The kinds of the only supported method, Binding.
const (
	Request  Kind = 0x0001
	Response Kind = 0x0101
	Failure  Kind = 0x0111
)

// Change asks a server to answer from its other address, its other port, or both (RFC 5780, CHANGE-REQUEST).
type Change uint8

// The parts of the source that can be changed.
const (
	ChangePort Change = 1 << 1
	ChangeAddr Change = 1 << 2
)

// Message holds the relevant parts of a STUN message. Addresses that the message does not carry are invalid.
type Message struct {
	Kind        Kind
	ID          TxID
	Mapped      netip.AddrPort // where the request came from: XOR-MAPPED-ADDRESS, or else MAPPED-ADDRESS
	Origin      netip.AddrPort // where the answer came from, RESPONSE-ORIGIN
	Other       netip.AddrPort // the server's other address and port, OTHER-ADDRESS
	Change      Change
	Code        int  // error code of a Failure, e.g. 420
	Fingerprint bool // present and correct
	unknown     []uint16
}

const (
	headerLen   = 20
	cookie      = 0x2112A442
	fingerprint = 0x5354554e // XORed with the checksum

	// maxLen is the maximum length of a message: one that fills the largest packet used in MTU discovery.
	maxLen = 1500 - 20 - 8
	// maxUnknown bounds how many unknown attributes are recorded.
	maxUnknown = 8
)

// The attributes.
const (
	attrMapped      = 0x0001
	attrChange      = 0x0003
	attrUsername    = 0x0006
	attrIntegrity   = 0x0008
	attrError       = 0x0009
	attrUnknown     = 0x000A
	attrRealm       = 0x0014
	attrNonce       = 0x0015
	attrIntegrity2  = 0x001C
	attrAlgorithm   = 0x001D
	attrUserhash    = 0x001E
	attrXORMapped   = 0x0020
	attrSoftware    = 0x8022
	attrFingerprint = 0x8028
	attrOrigin      = 0x802b
	attrOther       = 0x802c
	optional        = 0x8000 // attributes from here on may be ignored
)

// ErrFormat means that the bytes are not a STUN message, or are one that no honest sender sends.
var ErrFormat = errors.New("not a STUN message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Is reports whether a datagram is STUN rather than another protocol on the same socket.
func Is(b []byte) bool {
	return len(b) >= headerLen && b[0]&0xC0 == 0 && binary.BigEndian.Uint32(b[4:]) == cookie
}

// Parse parses a message that occupies all of b.
func Parse(b []byte) (Message, error) {
	if !Is(b) {
		return Message{}, malformed("%d bytes without its header", len(b))
	}
	m := Message{Kind: Kind(binary.BigEndian.Uint16(b)), ID: TxID(b[8:])}
	switch m.Kind {
	case Request, Response, Failure:
	default:
		return Message{}, malformed("type %#04x is none of Binding's", uint16(m.Kind))
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n != len(b)-headerLen || n%4 != 0 || len(b) > maxLen {
		return Message{}, malformed("length %d in %d bytes", n, len(b))
	}
	var mapped netip.AddrPort
	signed := false
	for at := headerLen; at < len(b); {
		if len(b)-at < 4 {
			return Message{}, malformed("half an attribute at %d", at)
		}
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		end := at + 4 + (n+3)&^3
		if end > len(b) || m.Fingerprint {
			return Message{}, malformed("attribute %#04x of %d bytes at %d of %d", kind, n, at, len(b))
		}
		v := b[at+4 : at+4+n]
		// Attributes after the integrity attribute are not covered by it and must be ignored (RFC 8489, section 14.5).
		if !signed || kind == attrFingerprint {
			if err := m.attribute(b, at, kind, v, &mapped); err != nil {
				return Message{}, err
			}
		}
		signed = signed || kind == attrIntegrity || kind == attrIntegrity2
		at = end
	}
	if !m.Mapped.IsValid() {
		m.Mapped = mapped
	}
	return m, nil
}

// attribute parses one attribute. Of duplicates, the first counts.
func (m *Message) attribute(b []byte, at int, kind uint16, v []byte, mapped *netip.AddrPort) error {
	var err error
	addr := func(to *netip.AddrPort, xor []byte) {
		var a netip.AddrPort
		if a, err = parseAddr(kind, v, xor); err == nil && !to.IsValid() {
			*to = a
		}
	}
	switch kind {
	case attrXORMapped:
		addr(&m.Mapped, b[4:headerLen])
	case attrMapped:
		addr(mapped, nil)
	case attrOrigin:
		addr(&m.Origin, nil)
	case attrOther:
		addr(&m.Other, nil)
	case attrChange:
		if len(v) != 4 {
			return malformed("CHANGE-REQUEST of %d bytes", len(v))
		}
		m.Change = Change(v[3]) & (ChangeAddr | ChangePort)
	case attrError:
		if len(v) < 4 || v[2]&7 < 3 || v[2]&7 > 6 || v[3] > 99 {
			return malformed("ERROR-CODE %x", v[:min(len(v), 4)])
		}
		m.Code = 100*int(v[2]&7) + int(v[3])
	case attrFingerprint:
		if len(v) != 4 || binary.BigEndian.Uint32(v) != sum(b[:at]) {
			return malformed("FINGERPRINT %x does not match", v[:min(len(v), 4)])
		}
		m.Fingerprint = true
	case attrUsername, attrIntegrity, attrIntegrity2, attrRealm, attrNonce, attrAlgorithm, attrUserhash, attrUnknown:
		// Credentials of the sender, which no one needs in order to learn an address.
	default:
		if kind < optional && len(m.unknown) < maxUnknown {
			m.unknown = append(m.unknown, kind)
		}
	}
	return err
}

// sum returns the checksum of everything before a FINGERPRINT; the length in the header already includes that attribute.
func sum(b []byte) uint32 { return crc32.ChecksumIEEE(b) ^ fingerprint }

// parseAddr parses an address attribute. XORed addresses hide from NATs that rewrite anything that looks like an address.
func parseAddr(kind uint16, v, xor []byte) (netip.AddrPort, error) {
	if len(v) < 2 || (v[1] != 1 || len(v) != 8) && (v[1] != 2 || len(v) != 20) {
		return netip.AddrPort{}, malformed("address %x in attribute %#04x", v[:min(len(v), 20)], kind)
	}
	var raw [16]byte
	ip := raw[:len(v)-4]
	copy(ip, v[4:])
	port := binary.BigEndian.Uint16(v[2:])
	if xor != nil {
		port ^= cookie >> 16
		for i := range ip {
			ip[i] ^= xor[i]
		}
	}
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port), nil
}

// AppendRequest appends a Binding request.
func AppendRequest(b []byte, id TxID) []byte { return AppendChangeRequest(b, id, 0) }

// AppendChangeRequest appends a Binding request that asks for an answer from elsewhere.
func AppendChangeRequest(b []byte, id TxID, c Change) []byte {
	at := len(b)
	b = appendHeader(b, Request, id)
	if c != 0 {
		b = append(b, 0, attrChange, 0, 4, 0, 0, 0, byte(c))
	}
	return finish(b, at, true)
}

// AppendResponse appends the answer to a request, with those addresses of m that are set.
func AppendResponse(b []byte, m Message) []byte {
	at := len(b)
	b = appendHeader(b, Response, m.ID)
	b = appendAddr(b, attrXORMapped, m.Mapped, b[at+4:at+headerLen])
	if m.Origin.IsValid() {
		b = appendAddr(b, attrOrigin, m.Origin, nil)
	}
	if m.Other.IsValid() {
		b = appendAddr(b, attrOther, m.Other, nil)
	}
	return finish(b, at, m.Fingerprint)
}

// appendUnknown appends the error response to a request with unknown attributes that must be understood.
func appendUnknown(b []byte, m Message, attrs []uint16) []byte {
	at := len(b)
	b = appendHeader(b, Failure, m.ID)
	b = append(b, 0, attrError, 0, 4, 0, 0, 4, 20)
	b = append(b, 0, attrUnknown, 0, byte(2*len(attrs)))
	for _, a := range attrs {
		b = binary.BigEndian.AppendUint16(b, a)
	}
	if len(attrs)%2 != 0 {
		b = append(b, 0, 0)
	}
	return finish(b, at, m.Fingerprint)
}

// AppendPadded appends a Binding request of exactly size bytes, a multiple of 4, to find out whether packets of that size get
// through. It reveals nothing about us: the padding is all zeros.
func AppendPadded(b []byte, id TxID, size int) []byte {
	at := len(b)
	b = appendHeader(b, Request, id)
	n := max(0, size-headerLen-4-8)
	b = binary.BigEndian.AppendUint16(b, attrSoftware)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	return finish(append(b, make([]byte, (n+3)&^3)...), at, true)
}

func appendHeader(b []byte, kind Kind, id TxID) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(kind))
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, cookie)
	return append(b, id[:]...)
}

// appendAddr appends an address attribute. A 4-in-6 address becomes IPv4.
func appendAddr(b []byte, kind uint16, a netip.AddrPort, xor []byte) []byte {
	ip := a.Addr().Unmap().AsSlice()
	family, port := byte(1), a.Port()
	if len(ip) == 16 {
		family = 2
	}
	if xor != nil {
		port ^= cookie >> 16
		for i := range ip {
			ip[i] ^= xor[i]
		}
	}
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, 0, byte(4+len(ip)), 0, family)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, ip...)
}

// finish sets the length of the message that starts at b[at] and appends its FINGERPRINT.
func finish(b []byte, at int, fingerprinted bool) []byte {
	n := len(b) - at - headerLen
	if fingerprinted {
		n += 8
	}
	binary.BigEndian.PutUint16(b[at+2:], uint16(n))
	if fingerprinted {
		s := sum(b[at:])
		b = binary.BigEndian.AppendUint16(b, attrFingerprint)
		b = append(b, 0, 4)
		b = binary.BigEndian.AppendUint32(b, s)
	}
	return b
}
