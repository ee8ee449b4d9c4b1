package control

import "sync"

// pool runs jobs on a fixed number of workers. A worker that may have to wait for a node's socket steps aside meanwhile and
// lets another one work, so that those who do not read cost those who do nothing. Whoever submits has at most one job in the
// pool at a time, which bounds the queue and the number of waiting workers by the number of streams.
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

func (p *pool) work() {
	for {
		job := p.next()
		if job == nil {
			return
		}
		job()
	}
}

// next takes a job, or ends the worker that asks: when there is none, or when others took its place while it stood aside.
func (p *pool) next() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 || p.working > p.workers {
		p.working--
		return nil
	}
	job := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return job
}

// aside does what may wait, in a job, without holding the worker's place.
func (p *pool) aside(wait func()) {
	p.mu.Lock()
	p.working--
	p.hire()
	p.mu.Unlock()
	wait()
	p.mu.Lock()
	p.working++
	p.mu.Unlock()
}

// close drops what is queued and waits for what is being done. Connections must be closed first, to end jobs that wait.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.queue = nil
	p.mu.Unlock()
	p.all.Wait()
}
