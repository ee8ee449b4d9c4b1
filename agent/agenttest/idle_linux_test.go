package agenttest

import (
	"context"
	"crypto/tls"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// TestTenThousandIdleConnections opens idle connections to a coordinator on real TCP and in real time, where sockets and their
// buffers are the kernel's. An honest machine that joins meanwhile must succeed within the deadlines of the protocol.
func TestTenThousandIdleConnections(t *testing.T) {
	const spare = 128
	many := min(10_000, (descriptors(20_000+spare)-spare)/2)
	if many < 10_000 {
		t.Logf("this system has room for %d connections only", many)
	}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	m := &mesh{T: t, net: sim.New(1)}
	co := must(coordinator.New(t.Context(), coordinator.Config{
		Data: t.TempDir(), URLs: []string{"https://" + l.Addr().String()}, Log: m.logger("coordinator"), Program: "test",
	}))(t)
	m.center = &center{m: m, process: &process{co: co}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- co.Run(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	idle := make([]net.Conn, many)
	begun := time.Now()
	for i := range idle {
		idle[i] = must(net.DialTimeout("tcp", l.Addr().String(), 30*time.Second))(t)
		defer idle[i].Close()
		switch i % 100 {
		case 0: // a hundred of them are strangers that have completed a handshake
			conn := tls.Client(idle[i], cert.ClientConfig(nil, func([][]byte) error { return nil }))
			if err := conn.HandshakeContext(ctx); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		case 1, 2, 3: // others have begun one
			if _, err := idle[i].Write([]byte{22, 3, 1, 2}); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	}
	t.Logf("%d connections were open after %v", many, time.Since(begun))

	begun = time.Now()
	n := newNode(m, "honest", 1)
	m.nodes = append(m.nodes, n)
	n.configure = func(c *agent.Config) { c.Edges.Dial = (&net.Dialer{}).DialContext }
	n.start()
	defer n.stop()
	if _, err := n.TryUp(m.Code(tags("tag:db")), time.Minute); err != nil {
		t.Fatal(err)
	}
	m.Settle()
	if st := n.Status(); st.GetState() != string(machine.StateRunning) || !st.GetCoordinator().GetConnected() {
		t.Errorf("the honest machine: %v", st)
	}
	t.Logf("the honest machine was served within %v", time.Since(begun))
}

// descriptors returns how many files this process may have open, after requesting as many as are wanted.
func descriptors(want uint64) int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	if limit.Cur < want {
		more := syscall.Rlimit{Cur: max(want, limit.Cur), Max: max(want, limit.Max)}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
			return int(want)
		}
		more = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
			limit = more
		}
	}
	return int(min(limit.Cur, want))
}
