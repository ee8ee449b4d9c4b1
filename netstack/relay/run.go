package relay

import (
	"errors"
	"sync"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// buffers hold one run each, including its headers.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, bind.RunSize)
	return &b
}}

// headSize returns the size of the header before each packet of a kind.
func headSize(k relaymsg.Kind) int {
	if k == relaymsg.DataFor {
		return relaymsg.HeaderSize + relaymsg.PeerSize
	}
	return relaymsg.HeaderSize
}

// putHead writes the header of a packet.
func putHead(b []byte, h relaymsg.Header, peer proto.NodeID) {
	h.Put(b)
	if h.Kind == relaymsg.DataFor {
		relaymsg.PutPeer(b[relaymsg.HeaderSize:], peer)
	}
}

var errTooLarge = errors.New("relay: packet does not fit a datagram with its header")

// sendWrapped sends a run of packets of size bytes, replacing the first skip bytes of each with a header.
func sendWrapped(run []byte, size, skip int, h relaymsg.Header, peer proto.NodeID, send func(run []byte, size int) error) error {
	head := headSize(h.Kind)
	each := size - skip + head
	if size <= skip || each > bind.MaxRun {
		return errTooLarge
	}
	p := buffers.Get().(*[]byte) //nolint:errcheck // nothing else is put there
	defer buffers.Put(p)
	out, n := (*p)[:0], 0
	most := min(bind.MaxRunCount, bind.MaxRun/each)
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		if len(msg) <= skip {
			break
		}
		at := len(out)
		out = out[:at+head]
		putHead(out[at:], h, peer)
		out = append(out, msg[skip:]...)
		if n++; n == most && len(run) > 0 {
			if err := send(out, each); err != nil {
				return err
			}
			out, n = out[:0], 0
		}
	}
	if n == 0 {
		return nil
	}
	return send(out, each)
}

// rewrap replaces the headers of a run in place with ones that are not longer. It returns the run's length and message size.
func rewrap(run []byte, size, skip int, h relaymsg.Header, peer proto.NodeID) (n, newSize int) {
	head := headSize(h.Kind)
	for at := 0; at < len(run); at += size {
		msg := run[at:min(at+size, len(run))]
		if len(msg) <= skip {
			break
		}
		if head != skip {
			copy(run[n+head:], msg[skip:])
		}
		putHead(run[n:], h, peer)
		n += head + len(msg) - skip
	}
	return n, size - skip + head
}

// strip removes the headers of a run in place.
func strip(run []byte, size, skip int) (n, newSize int) {
	for at := 0; at < len(run); at += size {
		msg := run[at:min(at+size, len(run))]
		if len(msg) <= skip {
			break
		}
		n += copy(run[n:], msg[skip:])
	}
	return n, size - skip
}

// singly turns a bind that moves single messages into one that moves runs.
type singly struct{ conn.Bind }

// asRuns returns b as Runs, whether or not it supports them.
func asRuns(b conn.Bind) bind.Runs {
	if r, ok := bind.AsRuns(b); ok {
		return r
	}
	return singly{b}
}

// OpenRuns implements bind.Runs.
func (s singly) OpenRuns(port uint16) ([]bind.RunFunc, uint16, error) {
	fns, actual, err := s.Open(port)
	out := make([]bind.RunFunc, 0, len(fns))
	for _, fn := range fns {
		out = append(out, s.join(fn))
	}
	return out, actual, err
}

func (s singly) join(fn conn.ReceiveFunc) bind.RunFunc {
	size := s.BatchSize()
	bufs, sizes, eps := make([][]byte, size), make([]int, size), make([]conn.Endpoint, size)
	for i := range bufs {
		bufs[i] = make([]byte, bind.RunSize)
	}
	at, n := 0, 0
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		for at == n {
			var err error
			at = 0
			if n, err = fn(bufs, sizes, eps); err != nil {
				n = 0
				return 0, 0, nil, err
			}
		}
		i := at
		at++
		return copy(buf, bufs[i][:sizes[i]]), sizes[i], eps[i], nil
	}
}

// SendRun implements bind.Runs.
func (s singly) SendRun(run []byte, size int, to conn.Endpoint) error {
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		if err := s.Send([][]byte{msg}, to); err != nil {
			return err
		}
	}
	return nil
}
