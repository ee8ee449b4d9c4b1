package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const clonePath = "/dev/net/tun"

// native is a Linux TUN device. A call reads or writes a packet or super-packet with its virtio header.
type native struct {
	name   string
	link   *link
	closed atomic.Bool
	close  func() error
	first  *queue

	reading sync.Mutex
	left    *Super // packets that Read has yet to return

	writing sync.Mutex
	queues  []*queue // in use
	spare   []*queue // not in use yet
	joiner  joiner
	failed  error // error of the Write in progress
}

var (
	_ Device = (*native)(nil)
	_ waker  = (*native)(nil)
)

// openNative creates a device with the given number of queues. All but one are idle until Supers is called.
func openNative(name string, mtu, queues int) (_ *native, err error) {
	d := &native{left: NewSuper()}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.closeQueues())
		}
	}()
	// Without IFF_TUN_EXCL, this would add a queue to a device that another program holds.
	if d.first, d.name, err = openQueue(name, flags|unix.IFF_TUN_EXCL); err != nil {
		return nil, err
	}
	d.queues = []*queue{d.first}
	for range queues - 1 {
		q, _, err := openQueue(d.name, flags)
		if err != nil {
			break // fewer will do
		}
		d.spare = append(d.spare, q)
		if err := q.attach(unix.IFF_DETACH_QUEUE); err != nil {
			return nil, err
		}
	}
	joinsUDP, err := d.first.offload()
	if err != nil {
		return nil, err
	}
	if d.link, err = openLink(d.name, mtu); err != nil {
		return nil, err
	}
	d.joiner = joiner{udp: joinsUDP, write: d.put}
	d.close = sync.OnceValue(d.end)
	return d, nil
}

// Supers returns the device's queues. The host uses all of them from then on, so each must be read.
func (d *native) Supers() []SuperReader {
	d.writing.Lock()
	defer d.writing.Unlock()
	for _, q := range d.spare {
		if q.attach(unix.IFF_ATTACH_QUEUE) != nil {
			break // fewer will do
		}
		d.queues, d.spare = append(d.queues, q), d.spare[1:]
	}
	out := make([]SuperReader, 0, len(d.queues))
	for _, q := range d.queues {
		out = append(out, nativeReader{d, q})
	}
	return out
}

// nativeReader reads one queue.
type nativeReader struct {
	d *native
	q *queue
}

// ReadSuper implements SuperReader.
func (r nativeReader) ReadSuper(s *Super, wait bool) (bool, error) {
	return r.d.readSuper(r.q, s, wait)
}

func (d *native) readSuper(q *queue, s *Super, wait bool) (bool, error) {
	n, err := q.read(s.room[:virtioSize+maxPacket], wait)
	switch {
	case err == nil:
		return true, s.take(n)
	case errors.Is(err, errNothing):
		return false, nil
	case d.closed.Load():
		return false, os.ErrClosed
	}
	return false, err
}

// Read implements Device, for callers that take packets one by one.
func (d *native) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	for n := 0; ; {
		for n < len(bufs) {
			p := d.left.Next()
			if p == nil {
				break
			}
			if sizes[n] = copy(bufs[n][offset:], p); sizes[n] == len(p) {
				n++
			}
		}
		if n > 0 {
			return n, nil
		}
		if _, err := d.readSuper(d.first, d.left, true); err != nil {
			d.left.pkt, d.left.at = nil, 0
			return 0, err
		}
	}
}

// Write implements Device. Consecutive packets of a flow are written as a super-packet. It overwrites the ten bytes before each
// packet.
func (d *native) Write(bufs [][]byte, offset int) (int, error) {
	if offset < virtioSize {
		return 0, fmt.Errorf("write to %s: %d bytes before a packet are less than %d", d.name, offset, virtioSize)
	}
	d.writing.Lock()
	defer d.writing.Unlock()
	d.failed = nil
	for _, b := range bufs {
		d.joiner.add(b, offset)
	}
	d.joiner.flush()
	if d.failed != nil {
		return 0, d.failed
	}
	return len(bufs), nil
}

// put writes one super-packet to its flow's queue: the kernel assigns the flow's other direction to the same queue.
func (d *native) put(parts [][]byte) {
	q := d.first
	if n := len(d.queues); n > 1 {
		q = d.queues[flowOf(parts[0][virtioSize:])%uint32(n)]
	}
	err := q.write(parts)
	if err != nil && d.closed.Load() {
		err = os.ErrClosed
	}
	if err != nil {
		d.failed = err
	}
}

// SetReadDeadline ends reads of the first queue, including Read, at that time.
func (d *native) SetReadDeadline(t time.Time) error { return d.first.file.SetReadDeadline(t) }

// MTU implements Device.
func (d *native) MTU() (int, error) { return d.link.mtu() }

// Name implements Device.
func (d *native) Name() (string, error) { return d.name, nil }

// File implements Device.
func (d *native) File() *os.File { return d.first.file.OS() }

// BatchSize implements Device: somewhat more packets than a super-packet usually has.
func (d *native) BatchSize() int { return 128 }

// Events implements Device.
func (d *native) Events() <-chan Event { return d.link.events }

// Close implements Device.
func (d *native) Close() error { return d.close() }

func (d *native) end() error {
	d.closed.Store(true)
	return errors.Join(d.link.close(), d.closeQueues())
}

func (d *native) closeQueues() error {
	d.writing.Lock()
	defer d.writing.Unlock()
	var errs []error
	for _, q := range append(d.queues, d.spare...) {
		errs = append(errs, q.file.Close())
	}
	return errors.Join(errs...)
}
