package relaymsg

import (
	"encoding/binary"
	"io"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Path and Protocol are used to request a stream: with GET, and an Upgrade.
const (
	Path     = "/v1/relay"
	Protocol = "redoubt-relay/1"
)

const (
	// FrameSize is the length of a frame's header.
	FrameSize = 16
	// MaxFrame bounds what follows: as much as one run of packets.
	MaxFrame = 1<<16 - 1
	// maxControlFrame bounds what follows in frames without packets.
	maxControlFrame = 64
)

// Frame is the header of a frame.
type Frame struct {
	Kind   Kind
	Size   int // of each packet except the last
	Length int
	Peer   proto.NodeID
}

// Append appends the header to b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Kind), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(f.Size))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Length))
	return binary.BigEndian.AppendUint64(b, uint64(f.Peer))
}

// ParseFrame parses a header of FrameSize bytes.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < FrameSize {
		return Frame{}, malformed("a frame's head of %d bytes", len(b))
	}
	length := binary.BigEndian.Uint32(b[4:])
	switch {
	case b[1] != 0:
		return Frame{}, malformed("a frame with unknown flags")
	case length > MaxFrame: // an int of 32 bits might not hold it
		return Frame{}, malformed("a frame of %d bytes, at most %d", length, MaxFrame)
	}
	f := Frame{
		Kind: Kind(b[0]), Size: int(binary.BigEndian.Uint16(b[2:])), Length: int(length),
		Peer: proto.NodeID(binary.BigEndian.Uint64(b[8:])),
	}
	switch f.Kind {
	case Data:
		if f.Length == 0 || f.Size == 0 || f.Size > f.Length || f.Peer == 0 {
			return Frame{}, malformed("a frame of %d bytes in packets of %d to %s", f.Length, f.Size, f.Peer)
		}
	case Ping, Pong, Unreached, Drain, Bound:
		if f.Length > maxControlFrame || f.Size != 0 {
			return Frame{}, malformed("a frame of kind %#x with %d bytes", uint8(f.Kind), f.Length)
		}
	default:
		return Frame{}, malformed("a frame of kind %#x", uint8(f.Kind))
	}
	return f, nil
}

// ReadFrame reads the next frame; what follows its header goes to buf, which holds MaxFrame bytes.
func ReadFrame(r io.Reader, buf []byte) (Frame, []byte, error) {
	var head [FrameSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, nil, err
	}
	f, err := ParseFrame(head[:])
	if err != nil {
		return Frame{}, nil, err
	}
	if _, err := io.ReadFull(r, buf[:f.Length]); err != nil {
		return Frame{}, nil, err
	}
	return f, buf[:f.Length], nil
}

// AppendControl encodes a frame without packets.
func AppendControl(b []byte, m *Message) []byte {
	var body [maxControlFrame]byte
	out := body[:0]
	switch m.Kind {
	case Ping, Pong:
		out = binary.BigEndian.AppendUint64(out, m.Token)
	case Unreached:
		out = append(out, byte(m.Reason))
	case Drain:
		out = binary.BigEndian.AppendUint32(out, m.Seconds)
	case Bound:
		out = appendAddr(binary.BigEndian.AppendUint32(out, m.Seconds), m.Addr)
	}
	return append(Frame{Kind: m.Kind, Length: len(out), Peer: m.Peer}.Append(b), out...)
}

// ParseControl decodes a frame without packets.
func ParseControl(f Frame, body []byte) (Message, error) {
	m := Message{Header: Header{Kind: f.Kind}, Peer: f.Peer}
	want := map[Kind]int{Ping: 8, Pong: 8, Unreached: 1, Drain: 4, Bound: 4 + addrSize}
	if n, ok := want[f.Kind]; !ok || n != len(body) {
		return Message{}, malformed("a frame of kind %#x with %d bytes", uint8(f.Kind), len(body))
	}
	var err error
	switch f.Kind {
	case Ping, Pong:
		m.Token = binary.BigEndian.Uint64(body)
	case Unreached:
		m.Reason = Reason(body[0])
	case Drain:
		m.Seconds = binary.BigEndian.Uint32(body)
	case Bound:
		m.Seconds = binary.BigEndian.Uint32(body)
		var a netip.AddrPort
		if a, err = parseAddr(body[4:]); err == nil {
			m.Addr = a
		}
	}
	return m, err
}
