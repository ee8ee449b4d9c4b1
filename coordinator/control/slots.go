package control

import "sync"

// slots bounds how many handshakes compute at once. Handshakes already begun take precedence: when thousands arrive at the same
// moment, the first ones finish early, rather than all of them finishing late.
type slots struct {
	mu           sync.Mutex
	free         int
	begun, fresh []chan struct{} // waiters, in order of arrival
}

// take waits for a slot. begun means that the handshake has computed before.
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

// give passes the slot to the next waiter.
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
