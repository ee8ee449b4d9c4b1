package control

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// maxPooled is the largest buffer returned to the pool.
const maxPooled = 128 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

func release(b *[]byte) {
	if cap(*b) <= maxPooled {
		buffers.Put(b)
	}
}

// frames reads messages from a connection. It holds no buffer while waiting for one.
type frames struct {
	src   io.Reader
	first [1]byte
	ahead bool
}

func newFrames(t *tls.Conn, early []byte) *frames {
	if len(early) == 0 {
		return &frames{src: t}
	}
	return &frames{src: io.MultiReader(bytes.NewReader(early), t)}
}

// Read returns the byte read ahead, then the rest.
func (f *frames) Read(b []byte) (int, error) {
	if f.ahead && len(b) > 0 {
		f.ahead = false
		b[0] = f.first[0]
		return 1, nil
	}
	return f.src.Read(b)
}

// next reads a message. sum is its hash as received, if a proof will have to cover it. Every message from nodes fits within the
// limit for unauthenticated ones, so nobody gets a larger buffer.
func (f *frames) next() (up *redoubtv1.Up, sum [32]byte, err error) {
	if _, err := io.ReadFull(f.src, f.first[:]); err != nil {
		return nil, sum, err
	}
	f.ahead = true
	b := buffers.Get().(*[]byte)
	defer release(b)
	raw, err := wire.ReadFrame(f, (*b)[:0], wire.MaxUp)
	if errors.Is(err, wire.ErrFrame) {
		return nil, sum, refusal.Malformed(err.Error())
	}
	if err != nil {
		return nil, sum, fmt.Errorf("read a frame: %w", err)
	}
	*b = raw
	if up, err = wire.DecodeUp(raw); err != nil {
		return nil, sum, refusal.Malformed(err.Error())
	}
	if up.GetHello() != nil || up.GetRenew() != nil {
		sum = sha256.Sum256(raw)
	}
	return up, sum, nil
}

// write sends a message.
func write(t *tls.Conn, m *redoubtv1.Down) error {
	b := buffers.Get().(*[]byte)
	defer release(b)
	frame, err := wire.AppendFrame((*b)[:0], m)
	if err != nil {
		return err
	}
	*b = frame
	_ = t.SetWriteDeadline(time.Now().Add(stuck))
	_, err = t.Write(frame)
	return err
}

// lastWord sends the final message. A peer that does not read it soon goes without.
func lastWord(t *tls.Conn, g *guest, m *redoubtv1.Down) {
	g.patience(time.Now().Add(parting))
	if write(t, m) != nil || t.CloseWrite() != nil {
		g.drop()
	}
}

// drain gives the peer a moment to read the final message: closing at once would discard it if the peer is still sending.
func drain(t *tls.Conn) { _, _ = io.CopyN(io.Discard, t, wire.MaxUp) }
