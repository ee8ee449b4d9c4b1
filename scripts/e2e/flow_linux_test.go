package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// pace is the interval between two packets of the flows below.
const pace = 2 * time.Millisecond

// tcpFlow is a connection that sends numbers to a server and back, one after the other, until it ends.
type tcpFlow struct {
	client, server net.Conn
	back           atomic.Uint64 // numbers received back
	done           [2]chan error // how it ended at the client and at the server
}

// tcpFlow connects two hosts.
func (r *rig) tcpFlow(from, to *lab.Host, dst netip.AddrPort) *tcpFlow {
	r.Helper()
	l, err := to.Listen(dst)
	if err != nil {
		r.Fatal(err)
	}
	defer l.Close()
	f := &tcpFlow{done: [2]chan error{make(chan error, 1), make(chan error, 1)}}
	r.await("a connection to "+dst.String(), func() (err error) {
		f.client, err = from.Dial(r.ctx, "tcp", dst.String())
		return err
	})
	if f.server, err = l.Accept(); err != nil {
		r.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { f.done[0] <- f.ask() })
	wg.Go(func() { f.done[1] <- f.answer() })
	r.Cleanup(func() {
		f.client.Close()
		f.server.Close()
		wg.Wait()
	})
	return f
}

// ask sends numbers and checks that each comes back.
func (f *tcpFlow) ask() error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	b := make([]byte, 8)
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(b, n)
		if _, err := f.client.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(f.client, b); err != nil {
			return err
		}
		if binary.BigEndian.Uint64(b) != n {
			return errors.New("something else came back")
		}
		f.back.Store(n)
		<-tick.C
	}
}

func (f *tcpFlow) answer() error {
	b := make([]byte, 8)
	for {
		if _, err := io.ReadFull(f.server, b); err != nil {
			return err
		}
		if _, err := f.server.Write(b); err != nil {
			return err
		}
	}
}

// lives waits until more numbers have come back.
func (r *rig) lives(f *tcpFlow, more uint64) {
	r.Helper()
	until := f.back.Load() + more
	r.await("the connection lives", func() error {
		if f.back.Load() >= until {
			return nil
		}
		select {
		case err := <-f.done[0]:
			r.Fatalf("the connection died: %v", err)
		default:
		}
		return errors.New("it is silent")
	})
}

// reset waits until the connection was reset at both ends.
func (r *rig) reset(f *tcpFlow) {
	r.Helper()
	for i, end := range []string{"the client's", "the server's"} {
		select {
		case err := <-f.done[i]:
			if !errors.Is(err, syscall.ECONNRESET) {
				r.Errorf("at %s end the connection ended with %v, not with a reset", end, err)
			}
		case <-time.After(patience):
			r.Errorf("at %s end the connection was not reset", end)
		}
	}
}

// udpFlow sends numbers to a server until it is stopped, whether or not they arrive.
type udpFlow struct {
	sent, got, highest atomic.Uint64

	mu      sync.Mutex
	arrived map[uint64]struct{}
	refused map[uint64]error // by the sender's own kernel

	client net.Conn
	server *net.UDPConn
	stop   chan struct{}
	once   sync.Once

	sender, receiver sync.WaitGroup
}

// payload begins each packet of a udpFlow; it must not be visible on any wire.
const payload = "in clear, for all to read: "

// udpFlow sends from one host to another.
func (r *rig) udpFlow(from, to *lab.Host, dst netip.AddrPort) *udpFlow {
	r.Helper()
	server, err := to.ListenUDP(dst)
	if err != nil {
		r.Fatal(err)
	}
	if err := makeRoom(server); err != nil {
		r.Fatal(err)
	}
	client, err := from.Dial(r.ctx, "udp", dst.String())
	if err != nil {
		r.Fatal(err)
	}
	f := &udpFlow{
		arrived: map[uint64]struct{}{}, refused: map[uint64]error{},
		client: client, server: server, stop: make(chan struct{}),
	}
	f.sender.Go(f.send)
	f.receiver.Go(f.receive)
	r.Cleanup(f.close)
	return f
}

// makeRoom lets a socket buffer many seconds of packets: on a busy machine this process may not run for a while, and what the
// kernel drops meanwhile was not lost by the mesh.
func makeRoom(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", failed)
}

func (f *udpFlow) send() {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	b := append([]byte(payload), make([]byte, 8)...)
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(b[len(payload):], n)
		f.sent.Store(n)
		if _, err := f.client.Write(b); err != nil { // for example, no route; later packets may get through
			f.mu.Lock()
			f.refused[n] = err
			f.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-f.stop:
			return
		}
	}
}

func (f *udpFlow) receive() {
	b := make([]byte, 2000)
	for {
		n, err := f.server.Read(b)
		if err != nil {
			return
		}
		if n != len(payload)+8 {
			continue
		}
		v := binary.BigEndian.Uint64(b[len(payload):])
		f.mu.Lock()
		f.arrived[v] = struct{}{}
		f.mu.Unlock()
		f.got.Add(1)
		if v > f.highest.Load() {
			f.highest.Store(v)
		}
	}
}

// end stops sending.
func (f *udpFlow) end() {
	f.once.Do(func() { close(f.stop) })
	f.sender.Wait()
}

func (f *udpFlow) close() {
	f.end()
	f.server.Close()
	f.client.Close()
	f.receiver.Wait()
}

// losesNothing ends a flow and checks that every packet arrives.
func (r *rig) losesNothing(f *udpFlow) {
	r.Helper()
	f.end()
	r.await("every packet arrives", func() error {
		if sent, got := f.sent.Load(), f.got.Load(); sent != got {
			return fmt.Errorf("%d were sent, %d arrived%s", sent, got, f.missing())
		}
		return nil
	})
}

// missing lists the numbers that did not arrive, as many as fit on a line.
func (f *udpFlow) missing() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for n, listed := uint64(1), 0; n <= f.sent.Load() && listed < 20; n++ {
		if _, ok := f.arrived[n]; !ok {
			listed++
			fmt.Fprintf(&b, "; %d is missing", n)
			if err := f.refused[n]; err != nil {
				fmt.Fprintf(&b, " (%v)", err)
			}
		}
	}
	return b.String()
}

// arrives waits until more numbers have arrived.
func (r *rig) arrives(f *udpFlow, more uint64) {
	r.Helper()
	until := f.got.Load() + more
	r.await("packets arrive", func() error {
		if f.got.Load() < until {
			return errors.New("too few")
		}
		return nil
	})
}

// silent checks that many numbers are sent from now on and none arrives.
func (r *rig) silent(f *udpFlow) {
	r.Helper()
	from := f.sent.Load()
	r.await("packets are sent", func() error {
		if f.sent.Load() < from+300 {
			return errors.New("too few")
		}
		return nil
	})
	if got := f.highest.Load(); got > from {
		r.Errorf("number %d arrived, and nothing that was sent after number %d may pass", got, from)
	}
}
