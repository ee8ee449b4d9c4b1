package packet

import "encoding/binary"

// IP protocol numbers that the parser handles.
const (
	protoHopByHop   = 0
	protoICMP       = 1
	protoTCP        = 6
	protoUDP        = 17
	protoRouting    = 43
	protoFragment   = 44
	protoICMPv6     = 58
	protoDestOption = 60
	protoSCTP       = 132
)

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Fault is the reason why a packet could not be parsed. Zero means no fault.
type Fault uint8

// The faults of packets.
const (
	OK           Fault = iota
	Truncated          // shorter than its headers claim
	BadVersion         // neither IPv4 nor IPv6
	BadHeader          // an IP header that contradicts itself
	SourceRoute        // IPv4 source route, IPv6 routing header or home address
	BadExtension       // IPv6 extension headers: too many, out of place or malformed
	BadFragment        // a fragment that no host sends
	SplitHeader        // a first fragment without the whole transport header
	BadTransport       // a transport header that contradicts itself
	MixedFamily        // addresses, or addresses and protocol, of different IP versions
	Faults             // the number of faults
)

var faultNames = [Faults]string{
	"no fault", "truncated packet", "not an IP packet", "malformed IP header", "source routing",
	"bad IPv6 extension headers", "malformed fragment", "transport header split over fragments",
	"malformed transport header", "mixed IP versions",
}

func (f Fault) String() string {
	if f < Faults {
		return faultNames[f]
	}
	return "unknown fault"
}

// Packet is the result of Parse. Offsets count from the start of the packet.
type Packet struct {
	Src, Dst Addr

	Seq, Ack uint32 // TCP
	FragID   uint32
	// FragOffset is the position of the fragment's data, counted from the end of the headers that every fragment repeats.
	FragOffset uint16
	FragLength uint16 // of the fragment's data; in a first IPv6 fragment it may begin with extension headers
	SrcPort    uint16 // TCP, UDP, SCTP
	DstPort    uint16
	EchoID     uint16 // ICMP echo requests and replies

	Version  uint8 // 4 or 6
	Proto    uint8 // of the transport; in later IPv6 fragments, what the fragment header names
	Flags    uint8 // TCP
	Type     uint8 // ICMP
	Code     uint8 // ICMP
	More     bool  // more fragments follow
	Fragment bool  // is a fragment, first or later

	Header  int // where the transport header begins; in later fragments, where their data begins
	Payload int // where the transport's payload begins
	Length  int // end of the packet; bytes beyond are not part of it
}

// Later reports whether p is a fragment other than the first; later fragments have no transport header.
func (p *Packet) Later() bool { return p.FragOffset != 0 }

// SegmentLength returns how far a TCP segment advances the sequence number: its payload, SYN and FIN.
func (p *Packet) SegmentLength() uint32 {
	return uint32(p.Length-p.Payload) + uint32(p.Flags&FIN) + uint32(p.Flags&SYN)>>1
}

// Parse parses the packet at the start of b into p. If it returns a fault, the contents of p are unspecified.
func Parse(b []byte, p *Packet) Fault { return parse(b, p, false) }

// Quoted parses the packet quoted by the ICMP error p of b into q. The sender of an error may truncate the quote anywhere; it
// must reach eight bytes into the transport header, which hold the ports, or type and identifier.
func (p *Packet) Quoted(b []byte, q *Packet) Fault { return parse(b[p.Payload:p.Length], q, true) }

func parse(b []byte, p *Packet, quoted bool) Fault {
	switch {
	case len(b) < 20:
		return Truncated
	case b[0]>>4 == 4:
		return p.ip4(b, quoted)
	case b[0]>>4 == 6:
		return p.ip6(b, quoted)
	}
	return BadVersion
}

func (p *Packet) ip4(b []byte, quoted bool) Fault {
	b0 := b[:20]
	header := int(b0[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b0[2:]))
	if header < 20 || total < header {
		return BadHeader
	}
	if total > len(b) {
		if !quoted || header > len(b) {
			return Truncated
		}
		total = len(b)
	}
	*p = Packet{} // then field by field: a literal with values is built aside and copied
	p.Src = addr4(binary.BigEndian.Uint32(b0[12:]))
	p.Dst = addr4(binary.BigEndian.Uint32(b0[16:]))
	p.Version, p.Proto = 4, b0[9]
	p.Header, p.Payload, p.Length = header, header, total
	if p.Proto == protoICMPv6 {
		return MixedFamily
	}
	if header > 20 {
		if fault := options4(b[20:header]); fault != OK {
			return fault
		}
	}
	if frag := binary.BigEndian.Uint16(b0[6:]); frag&0x3fff != 0 {
		p.fragment(uint32(binary.BigEndian.Uint16(b0[4:])), frag<<3, total-header, frag&0x2000 != 0)
		return p.piece(b[header:total], quoted)
	}
	return p.transport(b[header:total], quoted)
}

// options4 refuses malformed options and the loose and strict source route options.
func options4(b []byte) Fault {
	for len(b) > 0 {
		switch b[0] {
		case 0:
			return OK
		case 1:
			b = b[1:]
			continue
		case 131, 137:
			return SourceRoute
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return BadHeader
		}
		b = b[b[1]:]
	}
	return OK
}

func (p *Packet) ip6(b []byte, quoted bool) Fault {
	if len(b) < 40 {
		return Truncated
	}
	b0 := b[:40]
	total := 40 + int(binary.BigEndian.Uint16(b0[4:]))
	if total > len(b) {
		if !quoted {
			return Truncated
		}
		total = len(b)
	}
	*p = Packet{}
	p.Src = Addr{binary.BigEndian.Uint64(b0[8:]), binary.BigEndian.Uint64(b0[16:])}
	p.Dst = Addr{binary.BigEndian.Uint64(b0[24:]), binary.BigEndian.Uint64(b0[32:])}
	p.Version, p.Proto = 6, b0[6]
	p.Header, p.Payload, p.Length = 40, 40, total
	if p.Src.Is4() || p.Dst.Is4() {
		// The engine has let it pass by its IPv6 routes, but here it would be some node's own IPv4 address.
		return MixedFamily
	}
	switch p.Proto {
	case protoTCP, protoUDP, protoICMPv6:
		return p.transport(b[40:total], quoted)
	}
	if fault := p.extensions(b[:total]); fault != OK {
		return fault
	}
	if p.Fragment {
		return p.piece(b[p.Header:total], quoted)
	}
	return p.transport(b[p.Header:total], quoted)
}

// maxExtensions is how many IPv6 extension headers a packet may carry; real packets carry one or two.
const maxExtensions = 4

// extensions walks to the transport header. AH and ESP count as transports: rules refer to them by number.
func (p *Packet) extensions(b []byte) Fault {
	fragmented := false
	for n := 0; ; n++ {
		next := p.Proto
		switch next {
		case protoICMP:
			return MixedFamily
		case protoRouting:
			return SourceRoute
		case protoHopByHop, protoDestOption, protoFragment:
		default:
			return OK
		}
		rest := b[p.Header:]
		if n == maxExtensions || len(rest) < 8 || next == protoHopByHop && n > 0 {
			return BadExtension
		}
		length := 8
		if next == protoFragment {
			if fragmented {
				return BadExtension
			}
			fragmented = true
			if offset := binary.BigEndian.Uint16(rest[2:]); offset&0xfff9 != 0 {
				p.fragment(binary.BigEndian.Uint32(rest[4:]), offset&0xfff8, len(rest)-8, offset&1 != 0)
			}
		} else {
			length = int(rest[1])*8 + 8
			if length > len(rest) {
				return BadExtension
			}
			if fault := options6(rest[2:length]); fault != OK {
				return fault
			}
		}
		p.Proto = rest[0]
		p.Header += length
		p.Payload = p.Header
		if p.Later() {
			return OK
		}
	}
}

// options6 refuses malformed options, jumbograms, and the home address option, which replaces the source address that was
// checked.
func options6(b []byte) Fault {
	const pad1, jumbo, homeAddress = 0, 0xc2, 0xc9
	for len(b) > 0 {
		switch b[0] {
		case pad1:
			b = b[1:]
			continue
		case jumbo:
			return BadExtension
		case homeAddress:
			return SourceRoute
		}
		if len(b) < 2 || int(b[1])+2 > len(b) {
			return BadExtension
		}
		b = b[2+int(b[1]):]
	}
	return OK
}

func (p *Packet) fragment(id uint32, offset uint16, length int, more bool) {
	p.Fragment, p.FragID, p.FragOffset, p.FragLength, p.More = true, id, offset, uint16(length), more
}

// piece parses t, the data of a fragment. It refuses fragments that are empty or end beyond the largest packet, and those
// other than the last whose length is not a multiple of eight.
func (p *Packet) piece(t []byte, quoted bool) Fault {
	if n := len(t); !quoted && (n == 0 || int(p.FragOffset)+n > 65535 || p.More && n%8 != 0) {
		return BadFragment
	}
	if p.Later() {
		return OK
	}
	fault := p.transport(t, quoted)
	if fault == BadTransport {
		return SplitHeader
	}
	return fault
}

// transport parses the transport header at the start of t.
func (p *Packet) transport(t []byte, quoted bool) Fault {
	switch p.Proto {
	case protoTCP:
		if len(t) >= 20 {
			header := int(t[12]>>4) * 4
			if header < 20 || header > len(t) && !quoted {
				return BadTransport
			}
			p.Ack = binary.BigEndian.Uint32(t[8:])
			p.Flags = t[13]
			p.Payload += min(header, len(t))
		} else if !quoted || len(t) < 8 {
			return BadTransport
		}
		p.Seq = binary.BigEndian.Uint32(t[4:])
	case protoUDP:
		if len(t) < 8 {
			return BadTransport
		}
		if n := int(binary.BigEndian.Uint16(t[4:])); n < 8 || n > len(t) && !quoted && !p.Fragment {
			return BadTransport
		}
		p.Payload += 8
	case protoICMP, protoICMPv6:
		if len(t) < 8 {
			return BadTransport
		}
		p.Type, p.Code = t[0], t[1]
		if p.IsEchoRequest() || p.IsEchoReply() {
			p.EchoID = binary.BigEndian.Uint16(t[4:])
		}
		p.Payload += 8
		return OK
	case protoSCTP:
		if len(t) < 12 && (!quoted || len(t) < 8) {
			return BadTransport
		}
		p.Payload += min(12, len(t))
	default:
		return OK
	}
	p.SrcPort = binary.BigEndian.Uint16(t)
	p.DstPort = binary.BigEndian.Uint16(t[2:])
	return OK
}
