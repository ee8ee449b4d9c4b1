package bind

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// Siblings is a conn.Bind that can create others beside it, with their own ports. They need only IPv4.
type Siblings interface{ Sibling() conn.Bind }

// extras are the sockets beside those that all peers share.
type extras struct {
	mu   sync.Mutex
	all  map[uint32]*extra
	runs chan *parcel // from their readers to the engine's; nil before Open
	cuts bool         // the network may fragment what they send
}

// cut lets sockets opened from now on send in fragments, and returns the open ones.
func (e *extras) cut() []*extra {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cuts = true
	return slices.Collect(maps.Values(e.all))
}

// extra is an extra socket: the path to one peer, or a candidate for it.
type extra struct {
	number  uint32
	inner   conn.Bind
	stop    chan struct{}
	readers sync.WaitGroup
}

// parcel is a run that a reader passes to the engine, which signals taken when it has copied it.
type parcel struct {
	run   []byte
	size  int
	from  *Endpoint
	taken chan struct{}
}

// maxFirst is the maximum size of the first message received on an extra socket. Most of them never receive any.
const maxFirst = 2048

// OpenExtra opens a socket on a port of its own, under an unused number. The Bind must be open. It may be as slow as the
// system: nothing else waits for it.
func (b *Bind) OpenExtra(number uint32) error {
	family, ok := b.cfg.Inner.(Siblings)
	if !ok {
		return fmt.Errorf("open socket %d: %w", number, errors.ErrUnsupported)
	}
	b.mu.Lock()
	mark := b.mark
	b.mu.Unlock()
	x := &extra{number: number, inner: family.Sibling(), stop: make(chan struct{})}
	fns, err := openAnyPort(x.inner)
	if err != nil {
		return fmt.Errorf("open socket %d: %w", number, err)
	}
	if mark != 0 {
		if err := x.inner.SetMark(mark); err != nil {
			return errors.Join(fmt.Errorf("set mark %#x on socket %d: %w", mark, number, err), x.inner.Close())
		}
	}
	adopted, cuts := b.adopt(x, fns)
	if !adopted {
		return errors.Join(fmt.Errorf("open socket %d: %w", number, net.ErrClosed), x.inner.Close())
	}
	if cuts {
		if err := x.fragment(); err != nil {
			return errors.Join(err, b.ShutExtra(number))
		}
	}
	return nil
}

// adopt starts reading an open socket, which should send in fragments if cuts; adopted is false if the Bind is closed.
func (b *Bind) adopt(x *extra, fns []RunFunc) (adopted, cuts bool) {
	b.extras.mu.Lock()
	defer b.extras.mu.Unlock()
	to := b.extras.runs
	if to == nil {
		return false, false
	}
	b.extras.all[x.number] = x
	for _, fn := range fns {
		x.readers.Go(func() { b.readExtra(x, fn, to) })
	}
	return true, b.extras.cuts
}

func openAnyPort(inner conn.Bind) ([]RunFunc, error) {
	if r, ok := inner.(Runs); ok {
		fns, _, err := r.OpenRuns(0)
		return fns, err
	}
	fns, _, err := inner.Open(0)
	runs := make([]RunFunc, len(fns))
	for i, fn := range fns {
		runs[i] = singly(fn)
	}
	return runs, err
}

// singly turns a ReceiveFunc into one that returns runs of one message.
func singly(fn conn.ReceiveFunc) RunFunc {
	sizes, eps := make([]int, 1), make([]conn.Endpoint, 1)
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		n, err := fn([][]byte{buf}, sizes, eps)
		if n == 0 || err != nil {
			return 0, 0, nil, err
		}
		return sizes[0], sizes[0], eps[0], nil
	}
}

// ShutExtra closes a socket, and waits for its reader. It may already be closed.
func (b *Bind) ShutExtra(number uint32) error {
	b.extras.mu.Lock()
	x := b.extras.all[number]
	delete(b.extras.all, number)
	b.extras.mu.Unlock()
	if x == nil {
		return nil
	}
	return x.close()
}

func (x *extra) close() error {
	close(x.stop)
	err := x.inner.Close()
	x.readers.Wait()
	return err
}

// shutExtras closes all extra sockets, until the next Open.
func (b *Bind) shutExtras() error {
	b.extras.mu.Lock()
	all := b.extras.all
	b.extras.all, b.extras.runs = nil, nil
	b.extras.mu.Unlock()
	var errs []error
	for _, x := range all {
		errs = append(errs, x.close())
	}
	return errors.Join(errs...)
}

// Extras returns the number of open extra sockets.
func (b *Bind) Extras() int {
	b.extras.mu.Lock()
	defer b.extras.mu.Unlock()
	return len(b.extras.all)
}

// besides returns the functions that receive from the relays' streams and from extra sockets, until closed is closed.
func (b *Bind) besides(closed <-chan struct{}) (fns []RunFunc) {
	if closed == nil {
		return nil
	}
	if b.carrier != nil {
		fns = append(fns, b.receiveStreams(closed))
	}
	if _, ok := b.cfg.Inner.(Siblings); !ok || b.handler == nil {
		return fns
	}
	b.extras.mu.Lock()
	defer b.extras.mu.Unlock()
	b.extras.all, b.extras.runs = map[uint32]*extra{}, make(chan *parcel)
	return append(fns, receiveExtras(closed, b.extras.runs))
}

// receiveExtras returns a RunFunc for what extra sockets receive.
func receiveExtras(closed <-chan struct{}, runs <-chan *parcel) RunFunc {
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		select {
		case <-closed:
			return 0, 0, nil, net.ErrClosed
		case p := <-runs:
			n, size, from := copy(buf, p.run), p.size, p.from
			p.taken <- struct{}{}
			return n, size, from, nil
		}
	}
}

// readExtra reads a socket until it is closed.
func (b *Bind) readExtra(x *extra, fn RunFunc, to chan<- *parcel) {
	t := &table{bind: b, extra: x}
	p := &parcel{taken: make(chan struct{}, 1)}
	buf := make([]byte, maxFirst)
	for {
		n, size, ep, err := fn(buf)
		if err != nil {
			return // its path no longer answers, and is abandoned
		}
		if n == 0 {
			continue
		}
		from := t.intern(ep)
		if from.refused {
			continue
		}
		if p.run, p.size, p.from = b.sift(buf[:n], size, from), size, from; len(p.run) > 0 {
			select {
			case <-x.stop:
				return
			case to <- p:
				<-p.taken
			}
		}
		if len(buf) < RunSize {
			buf = make([]byte, RunSize)
		}
	}
}

// extraEndpoint returns the endpoint of an address reached through an extra socket.
func (b *Bind) extraEndpoint(number uint32, to netip.AddrPort) *Endpoint {
	b.extras.mu.Lock()
	defer b.extras.mu.Unlock()
	x := b.extras.all[number]
	if x == nil {
		x = &extra{number: number}
	}
	return &Endpoint{bind: b, dst: to, extra: x}
}

// through returns the Bind that sends to an endpoint.
func (b *Bind) through(e *Endpoint) (conn.Bind, error) {
	switch {
	case e.extra == nil:
		return b.cfg.Inner, nil
	case e.extra.inner == nil:
		return nil, fmt.Errorf("send by socket %d: %w", e.extra.number, net.ErrClosed)
	}
	return e.extra.inner, nil
}

// SendFrom sends a message that is not WireGuard's from an extra socket.
func (b *Bind) SendFrom(number uint32, msg []byte, to netip.AddrPort) error {
	e, err := b.plainEndpoint(to)
	if err != nil {
		return err
	}
	out, err := b.through(b.extraEndpoint(number, to))
	if err != nil {
		return err
	}
	return out.Send([][]byte{msg}, e)
}

// WholeFrom is Whole for messages sent from an extra socket.
func (b *Bind) WholeFrom(number uint32, send func() error) error {
	b.extras.mu.Lock()
	x := b.extras.all[number]
	b.extras.mu.Unlock()
	if x != nil {
		if w, ok := x.inner.(Whole); ok {
			return w.Whole(send)
		}
	}
	return fmt.Errorf("send in one piece by socket %d: %w", number, errors.ErrUnsupported)
}
