package control

import (
	"sync"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// waitedError ends a stream on which this machine waited for approval; held is for how long.
type waitedError struct {
	message string
	held    time.Duration
}

func (e *waitedError) Error() string { return e.message }

// wait waits until it is worth asking for a certificate again.
func (ch *channel) wait(p *redoubtv1.Pending) error {
	e := &waitedError{message: p.GetMessage()}
	if p.GetHoldSeconds() == 0 {
		after := time.Duration(p.GetRetryAfterSeconds()) * time.Second
		return &retryError{e, min(max(after, time.Second), time.Hour)}
	}
	begin := time.Now()
	ch.linger(p.GetHoldSeconds())
	e.held = time.Since(begin)
	return e
}

// linger keeps open a stream on which nothing but its end is expected, sending keepalives at the given interval.
func (ch *channel) linger(seconds uint32) {
	every := min(max(time.Duration(seconds)*time.Second, keepAliveMin), keepAliveMax)
	ended := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ended:
				return
			case <-t.C:
			}
			ch.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if ch.send(&redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}}) != nil {
				ch.conn.Close()
				return
			}
		}
	})
	for {
		ch.conn.SetReadDeadline(time.Now().Add(2*every + grace))
		if down, err := ch.read(maxGreeting); err != nil || down.GetKeepAlive() == nil {
			break
		}
	}
	close(ended)
	ch.conn.Close()
	writer.Wait()
}
