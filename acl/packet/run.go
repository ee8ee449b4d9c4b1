package packet

import "encoding/binary"

// Run describes consecutive packets of one TCP connection or UDP flow that merely continue it: without IPv4 options or IPv6
// extension headers, not fragmented and, for TCP, with ACK but without SYN, FIN and RST.
type Run struct {
	Packets, Bytes int
	// For TCP: the highest sequence number reached and the highest acknowledged.
	End, Ack uint32
}

// Follow counts how many packets at the start of bufs continue the flow of first, which Parse parsed into p. Packet i is
// bufs[i][offset:], limited to sizes[i] bytes if sizes is not nil. Parse would accept each of them. Follow exists because
// packets come in bursts, and comparing one with the previous one costs a fraction of parsing it.
func (p *Packet) Follow(first []byte, bufs [][]byte, sizes []int, offset int) Run {
	var r Run
	tcp := p.Proto == protoTCP
	if p.Fragment || !tcp && p.Proto != protoUDP {
		return r
	}
	least := p.Header + 8
	if tcp {
		least = p.Header + tcpHeaderLength
		r.End, r.Ack = p.Seq+p.SegmentLength(), p.Ack
	}
	l, ok := lookOf(first, p.Header)
	if !ok {
		return r
	}
	for i, b := range bufs {
		if b = b[offset:]; sizes != nil {
			b = b[:sizes[i]]
		}
		var end int
		switch {
		case l.is4:
			if len(b) < look4 || !l.like4((*[look4]byte)(b)) {
				return r
			}
			end = int(binary.BigEndian.Uint16(b[2:4]))
		default:
			if len(b) < look6 || !l.like6((*[look6]byte)(b)) {
				return r
			}
			end = headerLength6 + int(binary.BigEndian.Uint16(b[4:6]))
		}
		if end < least || end > len(b) {
			return r
		}
		t := b[p.Header:end]
		if tcp {
			header := int(t[12]>>4) * 4
			if t[13]&(FIN|SYN|RST|ACK) != ACK || header < tcpHeaderLength || header > len(t) {
				return r
			}
			if end := binary.BigEndian.Uint32(t[4:]) + uint32(len(t)-header); int32(end-r.End) > 0 {
				r.End = end
			}
			if ack := binary.BigEndian.Uint32(t[8:]); int32(ack-r.Ack) > 0 {
				r.Ack = ack
			}
		} else if n := int(binary.BigEndian.Uint16(t[4:6])); n < 8 || n > len(t) {
			return r
		}
		r.Packets++
		r.Bytes += end
	}
	return r
}

// look is what the headers of a run's packets have in common, word by word, including the ports.
type look struct {
	is4   bool
	words [6]uint64
}

const (
	look4 = headerLength4 + 8
	look6 = headerLength6 + 8

	// In the words of an IPv4 header: version and header length, the fragment fields except for "don't fragment"; then the
	// protocol and the source.
	mask4Start, mask4Source = 0xff00_0000_0000_3fff, 0x00ff_0000_ffff_ffff
	// In the words of an IPv6 header: the version and the protocol; after the addresses, the ports.
	mask6Start, maskPorts = 0xf000_0000_0000_ff00, 0xffff_ffff_0000_0000
)

func lookOf(b []byte, header int) (l look, ok bool) {
	switch {
	case header == headerLength4 && len(b) >= look4:
		l.is4 = true
		l.words[0] = binary.BigEndian.Uint64(b) & mask4Start
		l.words[1] = binary.BigEndian.Uint64(b[8:]) & mask4Source
		l.words[2] = binary.BigEndian.Uint64(b[16:])
		return l, true
	case header == headerLength6 && len(b) >= look6:
		l.words[0] = binary.BigEndian.Uint64(b) & mask6Start
		for i := 1; i < 5; i++ {
			l.words[i] = binary.BigEndian.Uint64(b[8*i:])
		}
		l.words[5] = binary.BigEndian.Uint64(b[40:]) & maskPorts
		return l, true
	}
	return l, false
}

func (l *look) like4(b *[look4]byte) bool {
	return binary.BigEndian.Uint64(b[:])&mask4Start == l.words[0] &&
		binary.BigEndian.Uint64(b[8:])&mask4Source == l.words[1] &&
		binary.BigEndian.Uint64(b[16:]) == l.words[2]
}

func (l *look) like6(b *[look6]byte) bool {
	return binary.BigEndian.Uint64(b[:])&mask6Start == l.words[0] &&
		binary.BigEndian.Uint64(b[8:]) == l.words[1] &&
		binary.BigEndian.Uint64(b[16:]) == l.words[2] &&
		binary.BigEndian.Uint64(b[24:]) == l.words[3] &&
		binary.BigEndian.Uint64(b[32:]) == l.words[4] &&
		binary.BigEndian.Uint64(b[40:])&maskPorts == l.words[5]
}
