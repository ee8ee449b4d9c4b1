package control

import (
	"sync"
	"time"
)

// slow is when a job of the pool counts as waiting for its peer instead of working.
const slow = 20 * time.Millisecond

// pool runs jobs on a fixed number of workers. A job that takes longer than slow waits for somebody: its worker is replaced
// by another one and ends with the job, so that those who do not read cost those who do nothing. Whoever submits has at
// most one job in the pool at a time, which bounds the queue and the number of waiting workers by the number of streams.
type pool struct {
	workers int

	mu      sync.Mutex
	queue   []func()
	working int
	closed  bool
	all     sync.WaitGroup
}

func newPool(workers int) *pool { return &pool{workers: workers} }

// submit has job done soon, in order of arrival. After close it does nothing.
func (p *pool) submit(job func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.queue = append(p.queue, job)
	p.hire()
}

// hire starts a worker if there is work and a place for one. Called with the lock held.
func (p *pool) hire() {
	if p.working < p.workers && len(p.queue) > 0 {
		p.working++
		p.all.Go(p.work)
	}
}

func (p *pool) next() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.queue = nil
		p.working--
		return nil
	}
	job := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return job
}

func (p *pool) work() {
	for {
		job := p.next()
		if job == nil {
			return
		}
		replaced := time.AfterFunc(slow, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.working--
			p.hire()
		})
		job()
		if !replaced.Stop() {
			return
		}
	}
}

// close drops what is queued and waits for what is being done. Connections must be closed first, to end jobs that wait.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.queue = nil
	p.mu.Unlock()
	p.all.Wait()
}
