package main

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// nobody is a listener to which nobody connects.
type nobody struct {
	once   sync.Once
	closed chan struct{}
}

func (l *nobody) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *nobody) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }
func (l *nobody) Addr() net.Addr            { return &net.TCPAddr{} }

// everyone permits a relay everything.
type everyone struct{}

func (everyone) Admit([]byte) (proto.NodeID, time.Time, error) {
	return 1, time.Now().Add(time.Hour), nil
}
func (everyone) Trusted(proto.NodeID) bool   { return true }
func (everyone) Meet(_, _ proto.NodeID) bool { return true }

// TestNodesAreToldBeforeTheirStreamsEnd checks that the relay drains while the coordinator still carries its streams.
func TestNodesAreToldBeforeTheirStreamsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		co, err := coordinator.New(t.Context(), coordinator.Config{Data: t.TempDir(), URLs: []string{"https://c.example"}, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		d := &daemonRun{co: co, listener: &nobody{closed: make(chan struct{})}, log: log}
		defer d.close()
		secret, err := relaymsg.NewSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		server, err := relay.NewServer(relay.ServerConfig{ID: 1, Secret: secret, Permit: everyone{}, Rand: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		d.relay = &embedded{server: server, watch: co.Admission().Watch(server.Recheck)}
		near, far := net.Pipe()
		defer near.Close()
		go func() { _ = server.ServeStream(far, nil) }()
		hear(t, near, relaymsg.Bound)

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.run(ctx) }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		select {
		case <-co.Done():
			t.Error("the coordinator has dropped the streams that it carries, and the relay has not drained")
		default:
		}
		hear(t, near, relaymsg.Drain)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// hear reads a control frame of a relay.
func hear(t *testing.T, r io.Reader, want relaymsg.Kind) {
	t.Helper()
	head := make([]byte, relaymsg.FrameSize)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	f, err := relaymsg.ParseFrame(head)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, f.Length)
	if _, err := io.ReadFull(r, body); err != nil || f.Kind != want {
		t.Fatalf("a frame of kind %d, want %d: %v", f.Kind, want, err)
	}
}
