package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	pb "google.golang.org/protobuf/proto"
)

// How the control stream begins.
const (
	Path     = "/v1/control"
	Protocol = "redoubt/1" // in the Upgrade header
)

// How TLS begins inside the TLS of somebody else: in an Upgrade, or as the subprotocol of a WebSocket.
const (
	TunnelPath     = "/v1/tls"
	TunnelProtocol = "redoubt-tls/1"
)

// How long a frame's message may be.
const (
	MaxFrameUnauthenticated = 64 << 10 // until the node is known by its certificate
	MaxFrame                = 1 << 20
	// MaxUp bounds every message of a node, whoever it is: none needs more.
	MaxUp = 64 << 10
)

// headerSize is that of the length before a message.
const headerSize = 4

// ErrFrame says that the other side sent a frame of a length that is not allowed.
var ErrFrame = errors.New("frame of a length that is not allowed")

// ReadFrame reads one frame and gives its message, in buf where it fits. Memory grows with what arrives, not with what the
// length promises. At the end of the stream the error is io.EOF, in the middle of a frame io.ErrUnexpectedEOF.
func ReadFrame(r io.Reader, buf []byte, limit int) ([]byte, error) {
	const step = 16 << 10
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n == 0 || int64(n) > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, want 1 to %d", ErrFrame, n, limit)
	}
	buf = buf[:0]
	for missing := int(n); missing > 0; missing = int(n) - len(buf) {
		if cap(buf) == len(buf) {
			buf = slices.Grow(buf, min(missing, max(step, len(buf))))
		}
		chunk := buf[len(buf):min(cap(buf), int(n))]
		if _, err := io.ReadFull(r, chunk); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		buf = buf[:len(buf)+len(chunk)]
	}
	return buf, nil
}

// AppendFrame appends a message as a frame to dst.
func AppendFrame(dst []byte, m pb.Message) ([]byte, error) {
	at := len(dst)
	out, err := pb.MarshalOptions{}.MarshalAppend(append(dst, 0, 0, 0, 0), m)
	if err != nil {
		return dst, fmt.Errorf("encode a %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	n := len(out) - at - headerSize
	if n == 0 || n > MaxFrame {
		return dst, fmt.Errorf("%w: a %s of %d bytes", ErrFrame, m.ProtoReflect().Descriptor().Name(), n)
	}
	binary.BigEndian.PutUint32(out[at:], uint32(n))
	return out, nil
}
