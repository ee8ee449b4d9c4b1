package pilot

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/netstack/path"
)

// maxExtra is how much work on dedicated sockets may wait, besides closing them: a punch opens them, sends from them several
// times, and closes them.
const maxExtra = 8 * path.MaxSockets

// extras is the work on dedicated sockets that waits to be done, in the order requested. Hundreds of them take the system a
// while, and no caller of the Pilot should have to wait for that.
type extras struct {
	mu   sync.Mutex
	list []func()
	more chan struct{} // holds a value if the list may not be empty

	open map[uint32]struct{} // sockets that are open or will be; used only by the goroutine of run
}

func newExtras() *extras {
	return &extras{more: make(chan struct{}, 1), open: map[uint32]struct{}{}}
}

// later queues work, and reports whether there was room for it.
func (x *extras) later(f func()) bool { return x.add(maxExtra, f) }

// opens queues the opening of a socket.
func (x *extras) opens(socket uint32, f func()) {
	if x.later(f) {
		x.open[socket] = struct{}{}
	}
}

// shuts queues the closing of a socket. There is always room for that, but only once for each socket that was queued to be opened.
func (x *extras) shuts(socket uint32, f func()) {
	if _, ok := x.open[socket]; ok {
		delete(x.open, socket)
		x.add(0, f)
	}
}

// add queues work unless that much is waiting; 0 means no limit.
func (x *extras) add(limit int, f func()) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if limit > 0 && len(x.list) >= limit {
		return false
	}
	x.list = append(x.list, f)
	select {
	case x.more <- struct{}{}:
	default:
	}
	return true
}

// take returns what was queued first, or nil if nothing is waiting.
func (x *extras) take() (f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.list) > 0 {
		f, x.list[0] = x.list[0], nil
		x.list = x.list[1:]
	}
	return f
}

// run does the work until stop is closed.
func (x *extras) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-x.more:
		}
		for f := x.take(); f != nil; f = x.take() {
			f()
			select {
			case <-stop:
				return
			default:
			}
		}
	}
}
