package wg_test

import (
	"log/slog"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

// superTUN presents the packets of a device without super-packets as super-packets of one packet each.
type superTUN struct {
	tun.Device
	bufs  [][]byte
	sizes []int
	left  []int // indexes into bufs
}

func (d *superTUN) Supers() []tun.SuperReader {
	for range d.BatchSize() {
		d.bufs = append(d.bufs, make([]byte, 65535))
	}
	d.sizes = make([]int, len(d.bufs))
	return []tun.SuperReader{d}
}

func (d *superTUN) ReadSuper(s *tun.Super, wait bool) (bool, error) {
	for len(d.left) == 0 {
		if !wait {
			return false, nil
		}
		n, err := d.Read(d.bufs, d.sizes, 0)
		if err != nil {
			return false, err
		}
		for i := range n {
			if d.sizes[i] > 0 {
				d.left = append(d.left, i)
			}
		}
	}
	i := d.left[0]
	d.left = d.left[1:]
	s.Set(d.bufs[i][:d.sizes[i]])
	return true, nil
}

// runBind moves runs over a bind that does not support them.
type runBind struct{ conn.Bind }

func (b runBind) OpenRuns(port uint16) (out []bind.RunFunc, actual uint16, err error) {
	fns, actual, err := b.Open(port)
	for _, fn := range fns {
		r := &runReader{fn: fn, eps: make([]conn.Endpoint, b.BatchSize()), sizes: make([]int, b.BatchSize())}
		for range b.BatchSize() {
			r.bufs = append(r.bufs, make([]byte, 65535))
		}
		out = append(out, r.read)
	}
	return out, actual, err
}

func (b runBind) SendRun(run []byte, size int, to conn.Endpoint) error {
	var msgs [][]byte
	for len(run) > 0 {
		n := min(size, len(run))
		msgs = append(msgs, run[:n])
		run = run[n:]
	}
	return b.Send(msgs, to)
}

// runReader joins messages received at once from one address and of one size into a run.
type runReader struct {
	fn    conn.ReceiveFunc
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	left  []int
}

func (r *runReader) read(buf []byte) (n, size int, from conn.Endpoint, err error) {
	for len(r.left) == 0 {
		got, err := r.fn(r.bufs, r.sizes, r.eps)
		if err != nil {
			return 0, 0, nil, err
		}
		for i := range got {
			if r.sizes[i] > 0 {
				r.left = append(r.left, i)
			}
		}
	}
	from, size = r.eps[r.left[0]], r.sizes[r.left[0]]
	for last := size; len(r.left) > 0 && last == size; r.left = r.left[1:] {
		i := r.left[0]
		if r.eps[i] != from || r.sizes[i] > size || n+r.sizes[i] > len(buf) {
			break
		}
		n += copy(buf[n:], r.bufs[i][:r.sizes[i]])
		last = r.sizes[i]
	}
	return n, size, from, nil
}

func super(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
	return wg.NewInline(self, &superTUN{Device: d}, runBind{b}, log)
}

// TestInlineSuper runs the contract over a device with super-packets and sockets with runs.
func TestInlineSuper(t *testing.T) { wgtest.Contract(t, super) }
