package control

import "sync"

// slots bounds how many compute at once. Who has begun goes before who has not: when thousands come at the same moment, those
// who were served first are done first, in place of all being done last and too late.
type slots struct {
	mu           sync.Mutex
	free         int
	begun, fresh []chan struct{} // who waits, in order of arrival
}

// take waits for a slot.
func (s *slots) take(begun bool) {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	if begun {
		s.begun = append(s.begun, turn)
	} else {
		s.fresh = append(s.fresh, turn)
	}
	s.mu.Unlock()
	<-turn
}

// give hands a slot to whoever is next.
func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := &s.begun
	if len(*queue) == 0 {
		queue = &s.fresh
	}
	if len(*queue) == 0 {
		s.free++
		return
	}
	close((*queue)[0])
	(*queue)[0] = nil
	*queue = (*queue)[1:]
}
