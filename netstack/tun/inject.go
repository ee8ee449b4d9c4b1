package tun

import (
	"bytes"
	"time"
)

// maxInjected is how many packets wait for the engine's next Read at most.
const maxInjected = 512

// Inject sends a packet towards a peer as though the host had sent it, already judged: resets to the far end of a flow
// that died. It never blocks; what finds no room is dropped and counted. Where the device cannot be woken the packet
// waits for the host's next one.
//
// The blocked Read is woken by a deadline in the past, which stays until Read finds nothing more to inject. Both happen
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

// takeInjected moves waiting packets to the engine's buffers; once there are none it makes Read block again.
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

// takeInjectedSuper is takeInjected for one packet.
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

// took takes the first n packets out. The caller holds the lock.
func (d *FilteredDevice) took(n int) {
	d.injected = append(d.injected[:0], d.injected[n:]...)
	if n == 0 {
		d.pending.Store(false)
		if d.awoken {
			// The only error is that of a closed device, which the Read that follows returns as well.
			_ = d.waker.SetReadDeadline(time.Time{})
			d.awoken = false
		}
	}
}
