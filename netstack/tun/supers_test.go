package tun_test

import (
	"errors"
	"os"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/proto"
)

// queued is a simulated device that returns each packet as a super-packet of one, and can report malformed ones.
type queued struct {
	*sim.TUN
	mu      sync.Mutex
	strange int // number of malformed ones that come first
}

func (q *queued) Supers() []tun.SuperReader { return []tun.SuperReader{q} }

func (q *queued) ReadSuper(s *tun.Super, wait bool) (bool, error) {
	q.mu.Lock()
	bad := q.strange > 0
	if bad {
		q.strange--
	}
	q.mu.Unlock()
	if bad {
		return true, tun.ErrMalformed
	}
	if !wait {
		return false, nil
	}
	bufs, sizes := buffers(1)
	n, err := q.Read(bufs, sizes, 0)
	if n == 1 {
		s.Set(bufs[0][:sizes[0]])
	}
	return n == 1, err
}

// superNumber returns the number of the next packet; 0 means none.
func superNumber(t *testing.T, r tun.SuperReader, wait bool) uint16 {
	t.Helper()
	s := tun.NewSuper()
	ok, err := r.ReadSuper(s, wait)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return 0
	}
	p, err := sim.Parse(s.Next())
	if err != nil {
		t.Fatal(err)
	}
	return p.Number
}

func TestFilteredSupers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &numbers{denied: map[uint16]bool{1: true, 9: true}, refused: map[uint16]bool{2: true}}
		inner := &queued{TUN: sim.NewTUN("sim0", 1420), strange: 3}
		d := tun.Filtered(inner, h)
		defer d.Close()
		queues := tun.Supers(d)
		if len(queues) != 1 {
			t.Fatalf("%d queues", len(queues))
		}
		for n := uint16(1); n <= 3; n++ {
			inner.Send(echo(n))
		}
		if n := superNumber(t, queues[0], true); n != 3 {
			t.Errorf("got packet %d, want 3", n)
		}
		if bad := d.Stats().BadReads; bad != 3 {
			t.Errorf("%d malformed packets were counted", bad)
		}
		if _, err := inner.Recv(t.Context()); err != nil { // the reply to the denied one
			t.Error(err)
		}
		if n := superNumber(t, queues[0], false); n != 0 {
			t.Errorf("got packet %d where there is none", n)
		}
		got := make(chan uint16)
		go func() {
			for range 2 {
				got <- superNumber(t, queues[0], true)
			}
		}()
		synctest.Wait()
		d.Inject(echo(9)) // not judged again
		if n := <-got; n != 9 {
			t.Errorf("got packet %d, want the injected one", n)
		}
		synctest.Wait() // blocks again
		inner.Send(echo(4))
		if n := <-got; n != 4 {
			t.Errorf("got packet %d, want 4", n)
		}
		d.Close()
		if ok, err := queues[0].ReadSuper(tun.NewSuper(), true); ok || !errors.Is(err, os.ErrClosed) {
			t.Errorf("read a closed device: %t, %v", ok, err)
		}
	})
}

// TestDeniedFloodEnds checks that a read without wait returns, whatever the host does meanwhile.
func TestDeniedFloodEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &queued{TUN: sim.NewTUN("sim0", 1420), strange: 1000}
		d := tun.Filtered(inner, &numbers{})
		defer d.Close()
		if n := superNumber(t, tun.Supers(d)[0], false); n != 0 {
			t.Errorf("got packet %d", n)
		}
		if bad := d.Stats().BadReads; bad == 0 || bad == 1000 {
			t.Errorf("%d packets were looked at", bad)
		}
	})
}

func TestNoSupers(t *testing.T) {
	d := tun.Filtered(sim.NewTUN("sim0", 1420), open{})
	defer d.Close()
	if q := tun.Supers(d); len(q) != 0 {
		t.Errorf("a device without super-packets has %d queues of them", len(q))
	}
}

// joinedHook records what it was asked about super-packets.
type joinedHook struct {
	open
	batches []int
}

func (h *joinedHook) OutSegments([]byte, int) filter.Verdict { return filter.Verdict{Pass: true} }

func (h *joinedHook) InBatch(_ proto.NodeID, bufs [][]byte, _ int, verdicts []filter.Verdict) {
	h.batches = append(h.batches, len(bufs))
	for i := range verdicts {
		verdicts[i] = filter.Verdict{Pass: true}
	}
}

func TestBatchesAreJudgedTogether(t *testing.T) {
	h := &joinedHook{}
	d := tun.Filtered(null{sim.NewTUN("sim0", 1420)}, h)
	defer d.Close()
	bufs, _ := buffers(300)
	if n, err := d.Write(bufs, 16); n != 300 || err != nil {
		t.Fatalf("%d packets were written: %v", n, err)
	}
	if len(h.batches) != 3 || h.batches[2] != 300-2*128 {
		t.Errorf("batches of %v", h.batches)
	}
}
