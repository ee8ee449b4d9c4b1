// Package acceptor accepts connections despite passing failures.
package acceptor

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// How long to wait after a failure. Each wait is twice as long as the one before, up to longest.
const (
	shortest = 5 * time.Millisecond
	longest  = time.Second
)

// Next accepts a connection. A failure of anything but the listener's end passes, most likely because connections that end free
// file descriptors: Next logs it and tries again. It returns an error when the listener is closed or the context is done.
func Next(ctx context.Context, l net.Listener, log *slog.Logger) (net.Conn, error) {
	for pause := shortest; ; pause = min(2*pause, longest) {
		c, err := l.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		log.Warn("cannot accept a connection", "at", l.Addr(), "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
