package wg

import (
	"container/heap"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
)

// timer is a node's entry in timers.
type timer struct {
	due   time.Time
	place int // 1-based index in the heap; 0 if not set
}

// timers is a heap of the nodes that wait for a time, earliest first. A timer may fire early: the node then sets it again.
type timers struct {
	mu   sync.Mutex
	list dueList
	wake chan struct{} // receives a value when the earliest one changed
}

func newTimers() *timers { return &timers{wake: make(chan struct{}, 1)} }

// set sets a node's timer.
func (t *timers) set(n *node, due time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.timer.due = due
	if n.timer.place == 0 {
		heap.Push(&t.list, n)
	} else {
		heap.Fix(&t.list, n.timer.place-1)
	}
	if t.list[0] == n {
		t.poke()
	}
}

// remove stops a node's timer.
func (t *timers) remove(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.timer.place > 0 {
		heap.Remove(&t.list, n.timer.place-1)
	}
}

// poke makes runTimers look at the earliest timer again.
func (t *timers) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// next returns a node whose time has come, or else the time of the earliest timer.
func (t *timers) next(now time.Time) (*node, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) == 0 {
		return nil, time.Time{}
	}
	if n := t.list[0]; now.Before(n.timer.due) {
		return nil, n.timer.due
	}
	return heap.Pop(&t.list).(*node), time.Time{} //nolint:errcheck // dueList holds nothing else
}

// dueList implements heap.Interface.
type dueList []*node

func (l dueList) Len() int           { return len(l) }
func (l dueList) Less(i, j int) bool { return l[i].timer.due.Before(l[j].timer.due) }

func (l dueList) Swap(i, j int) {
	l[i], l[j] = l[j], l[i]
	l[i].timer.place, l[j].timer.place = i+1, j+1
}

func (l *dueList) Push(x any) {
	n := x.(*node) //nolint:errcheck // only timers pushes
	*l = append(*l, n)
	n.timer.place = len(*l)
}

func (l *dueList) Pop() any {
	last := len(*l) - 1
	n := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	n.timer.place = 0
	return n
}

// runTimers ticks peers whose timers are due, and drops our expired keys.
func (e *Inline) runTimers() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-e.stopping:
			return
		case <-e.timers.wake:
		case <-t.C:
		}
		now := e.now()
		next := e.drain(now)
		for {
			n, due := e.timers.next(now)
			if n == nil {
				if !due.IsZero() && (next.IsZero() || due.Before(next)) {
					next = due
				}
				break
			}
			e.tick(n, now)
		}
		t.Stop()
		if !next.IsZero() {
			t.Reset(next.Sub(e.now()))
		}
	}
}

func (e *Inline) tick(n *node, now time.Time) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.armed = time.Time{}
	if n.peer == nil {
		return
	}
	if due := n.peer.Next(); !due.IsZero() && !now.Before(due) {
		e.step(n, now, session.Tick{})
	}
	e.settle(n)
}
