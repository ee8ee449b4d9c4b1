package control

import (
	"iter"
	"maps"
	"slices"
	"time"
)

// beats is into how many parts the time between two checks of a stream is divided. The streams of a beat are woken together:
// waking the process costs more than the work itself, and their nodes answer while it is awake.
const beats = int(keepAlive / time.Second)

// pulse holds all streams, evenly spread over the beats.
type pulse struct {
	beats [beats]map[*stream]struct{}
	next  int // the beat of the next stream
	len   int
}

func (p *pulse) add(st *stream) {
	st.beat = p.next
	p.next = (p.next + 1) % beats
	if p.beats[st.beat] == nil {
		p.beats[st.beat] = make(map[*stream]struct{})
	}
	p.beats[st.beat][st] = struct{}{}
	p.len++
}

func (p *pulse) remove(st *stream) {
	if _, ok := p.beats[st.beat][st]; ok {
		delete(p.beats[st.beat], st)
		p.len--
	}
}

func (p *pulse) all() iter.Seq[*stream] {
	return func(yield func(*stream) bool) {
		for _, beat := range p.beats {
			for st := range beat {
				if !yield(st) {
					return
				}
			}
		}
	}
}

// beat checks each stream every keepAlive: if nothing was sent for half of that time, the node gets a keepalive, so that it
// hears something at least every one and a half keepAlives.
func (s *Server) beat() {
	t := time.NewTicker(keepAlive / time.Duration(beats))
	defer t.Stop()
	var due []*stream
	for i := 0; ; i = (i + 1) % beats {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		due = slices.AppendSeq(due[:0], maps.Keys(s.streams.beats[i]))
		s.mu.Unlock()
		now := time.Now()
		for _, st := range due {
			st.speak(now)
		}
		clear(due)
	}
}
