package control

import "sync"

// pool runs jobs on a fixed number of workers. A worker that may block on a node's socket steps aside and lets another one
// work, so that nodes that do not read cost the others nothing. Each submitter has at most one job in the pool, so the queue
// and the number of blocked workers are bounded by the number of streams.
type pool struct {
	workers int

	mu      sync.Mutex
	queue   []func()
	working int
	closed  bool
	all     sync.WaitGroup
}

func newPool(workers int) *pool { return &pool{workers: workers} }

// submit queues a job; jobs start in order of arrival. After close it does nothing.
func (p *pool) submit(job func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.queue = append(p.queue, job)
	p.hire()
}

// hire starts a worker if there is work and room for one. The caller holds mu.
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

// next returns the next job, or nil to end the calling worker: if there is none, or if others took its place while it was
// aside.
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

// aside runs wait, which may block, within a job, without occupying a worker's place.
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

// close discards queued jobs and waits for running ones. Connections must be closed first, so that blocked jobs end.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	p.queue = nil
	p.mu.Unlock()
	p.all.Wait()
}
