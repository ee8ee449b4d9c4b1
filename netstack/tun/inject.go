package tun

import (
	"bytes"
	"time"
)

// maxInjected bounds how many packets wait for the engine's next Read.
const maxInjected = 512

// Inject sends a packet to a peer as if the host had sent it, without judging it: for example a reset to the far end of a flow
// that died. It never blocks; packets beyond the limit are dropped and counted. If the device cannot be woken, the packet waits
// for the next one from the host.
//
// A read deadline in the past wakes the blocked Read, and stays in place until Read finds nothing more to inject. Both happen
// under mu, so no wake-up is lost, and a Read that was woken always has something to do.
func (d *FilteredDevice) Inject(toPeer []byte) {
	if len(toPeer) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.injected) >= maxInjected {
		d.injectDropped.Add(1)
		return
	}
	d.injected = append(d.injected, bytes.Clone(toPeer))
	d.pending.Store(true)
	if d.waker != nil && !d.awoken {
		d.awoken = d.waker.SetReadDeadline(longAgo) == nil
	}
}

// takeInjected moves waiting packets to the engine's buffers; if there are none it clears the deadline, so that Read blocks
// again.
func (d *FilteredDevice) takeInjected(bufs [][]byte, sizes []int, offset int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(d.injected), len(bufs))
	for i := range n {
		sizes[i] = copy(bufs[i][offset:], d.injected[i])
	}
	d.took(n)
	return n
}

// takeInjectedSuper is takeInjected for a single packet.
func (d *FilteredDevice) takeInjectedSuper(s *Super) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(d.injected), 1)
	if n == 1 {
		s.Set(d.injected[0])
	}
	d.took(n)
	return n == 1
}

// took removes the first n packets, or clears the deadline if n is 0. The caller holds mu.
func (d *FilteredDevice) took(n int) {
	d.injected = append(d.injected[:0], d.injected[n:]...)
	if n == 0 {
		d.pending.Store(false)
		if d.awoken {
			// The only possible error is that the device is closed, which the following Read returns as well.
			_ = d.waker.SetReadDeadline(time.Time{})
			d.awoken = false
		}
	}
}
