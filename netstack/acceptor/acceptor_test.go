package acceptor_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/acceptor"
)

// full is a listener that fails some times for want of file descriptors, then returns err.
type full struct {
	fails int
	err   error
}

func (f *full) Accept() (net.Conn, error) {
	if f.fails == 0 {
		return nil, f.err
	}
	f.fails--
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
}

func (f *full) Close() error   { return nil }
func (f *full) Addr() net.Addr { return &net.TCPAddr{} }

func TestNext(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if _, err := acceptor.Next(t.Context(), &full{fails: 3}, log); err != nil || time.Since(begin) != 35*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		begin = time.Now()
		_, err := acceptor.Next(t.Context(), &full{fails: 100, err: net.ErrClosed}, log)
		if took := time.Since(begin); !errors.Is(err, net.ErrClosed) || took < 90*time.Second || took > 100*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin = time.Now()
		if _, err := acceptor.Next(ctx, &full{fails: 1000}, log); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}
