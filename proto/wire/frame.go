package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	pb "google.golang.org/protobuf/proto"
)

// How the control stream is requested.
const (
	Path     = "/v1/control"
	Protocol = "redoubt/1" // in the Upgrade header
)

// How a TLS connection inside another one is requested: by an Upgrade, or as the subprotocol of a WebSocket.
const (
	TunnelPath     = "/v1/tls"
	TunnelProtocol = "redoubt-tls/1"
)

// The maximum length of the message in a frame, in bytes.
const (
	MaxFrameUnauthenticated = 64 << 10 // until the coordinator has sent Welcome
	MaxFrame                = 1 << 20
	// MaxUp applies to every message from a node, authenticated or not: none needs more.
	MaxUp = 64 << 10
)

// headerSize is the size of the length before a message.
const headerSize = 4

// ErrFrame means that the other side sent a frame of a forbidden length.
var ErrFrame = errors.New("frame of a length that is not allowed")

// ReadFrame reads one frame and returns its message, in buf if it fits. Memory grows with what arrives, not with the announced
// length. At the end of the stream the error is io.EOF, in the middle of a frame io.ErrUnexpectedEOF.
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
