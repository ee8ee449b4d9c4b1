package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/control"
	mesh "github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// order is what a rig tells some of its nodes to do; report is the response.
type order struct {
	Do    string   // join, renew, drop, attach, slow, give, free, leave, sums
	Codes []string // join: one per node
	Nodes []mesh.NodeID
	Bytes int // give: how many bytes the slow nodes may read
}

type report struct {
	Err  string
	IDs  []mesh.NodeID // join: in the order of the codes
	Sums []sum
}

// sum is a digest of what a node knows about the mesh, without the version.
type sum struct {
	ID  mesh.NodeID
	Sum [sha256.Size]byte
}

func sumOf(nm *mesh.Netmap) (out [sha256.Size]byte) {
	if nm == nil {
		return out
	}
	same := *nm
	same.Version = mesh.Version{}
	h := sha256.New()
	for _, part := range wire.FromNetmap(&same) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(part)
		if err != nil {
			panic(err) // it was made from what was sent
		}
		_ = json.NewEncoder(h).Encode(b)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// hands run nodes, in this process or another: one process may have too few file descriptors for all of them.
type hands interface {
	do(order) report
	close() error
}

// own are the hands in this process.
type own struct {
	crowd crowd
	taps  map[mesh.NodeID]*tap
}

func (o *own) do(q order) (a report) {
	var err error
	switch q.Do {
	case "join":
		before := len(o.crowd)
		err = o.crowd.join(q.Codes)
		for _, n := range o.crowd[before:] {
			a.IDs = append(a.IDs, n.self.Node.ID)
		}
	case "renew":
		err = o.crowd.do(command{Do: q.Do, Count: 20, Over: 200 * time.Millisecond}, &answer{})
	case "drop", "attach":
		err = o.crowd.do(command{Do: q.Do}, &answer{})
	case "slow":
		for _, n := range o.named(q.Nodes) {
			o.slow(n)
		}
	case "give":
		for _, id := range q.Nodes {
			if t := o.taps[id]; t != nil { // otherwise it belongs to another process
				t.let(q.Bytes)
			}
		}
	case "free":
		for _, t := range o.taps {
			t.open()
		}
	case "leave":
		for _, n := range o.named(q.Nodes) {
			n.client.Swap(nil).Close()
			o.crowd = slices.DeleteFunc(o.crowd, func(x *node) bool { return x == n })
		}
	case "sums":
		for _, n := range o.crowd {
			a.Sums = append(a.Sums, sum{n.self.Node.ID, sumOf(n.knows())})
		}
	default:
		err = fmt.Errorf("no order %q", q.Do)
	}
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

func (o *own) close() error {
	o.do(order{Do: "free"})
	o.crowd.drop()
	return nil
}

func (o *own) named(ids []mesh.NodeID) crowd {
	var out crowd
	for _, n := range o.crowd {
		if slices.Contains(ids, n.self.Node.ID) {
			out = append(out, n)
		}
	}
	return out
}

// slow makes a node reconnect on a connection of which it reads only as much as it is allowed.
func (o *own) slow(n *node) {
	t := newTap()
	if o.taps == nil {
		o.taps = map[mesh.NodeID]*tap{}
	}
	o.taps[n.self.Node.ID] = t
	n.client.Swap(nil).Close()
	cfg := n.config()
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		// What it does not read must not be buffered by the system either.
		if err := c.(*counted).Conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			return nil, errors.Join(err, c.Close())
		}
		return &tapped{Conn: c, tap: t, closed: make(chan struct{})}, nil
	}
	n.mu.Lock()
	opened := make(chan struct{})
	n.opened = opened
	n.mu.Unlock()
	n.client.Store(control.Attach(cfg, n.self, n.knows().Version, nil))
	<-opened
	n.again()
	t.shut()
}

// tap lets as many bytes through as it is told, and everything while it is open.
type tap struct {
	mu      sync.Mutex
	turned  chan struct{} // closed when more may pass
	flowing bool
	left    int
}

func newTap() *tap { return &tap{turned: make(chan struct{}), flowing: true} }

func (t *tap) shut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flowing, t.left = false, 0
}

func (t *tap) open() { t.turn(func() { t.flowing = true }) }

func (t *tap) let(n int) { t.turn(func() { t.left += n }) }

func (t *tap) turn(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	close(t.turned)
	t.turned = make(chan struct{})
}

// take returns how many of n bytes may pass and, if none may, a channel that is closed when to ask again.
func (t *tap) take(n int) (int, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flowing {
		return n, nil
	}
	n = min(n, t.left)
	t.left -= n
	return n, t.turned
}

type tapped struct {
	net.Conn
	tap    *tap
	once   sync.Once
	closed chan struct{}
}

func (c *tapped) Read(b []byte) (int, error) {
	for len(b) > 0 {
		n, again := c.tap.take(len(b))
		if n > 0 {
			return c.Conn.Read(b[:n])
		}
		select {
		case <-again:
		case <-c.closed:
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Read(b)
}

func (c *tapped) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// handsOf runs the hands in a process started for that: it executes the orders that it reads until there are no more.
func handsOf(in io.Reader, out io.Writer) error {
	o := &own{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var q order
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		if err := json.NewEncoder(out).Encode(o.do(q)); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), o.close())
}

// beHands is set in the environment of a test program that should run hands.
const beHands = "REDOUBT_FLEET_HANDS"

// others are the hands in another process.
type others struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func hire(t *testing.T) *others {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := &others{cmd: exec.CommandContext(context.Background(), self)}
	o.cmd.Env, o.cmd.Stderr = append(os.Environ(), beHands+"=1"), os.Stderr
	in, err1 := o.cmd.StdinPipe()
	out, err2 := o.cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	o.in, o.out = in, json.NewDecoder(out)
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *others) do(q order) (a report) {
	if err := json.NewEncoder(o.in).Encode(q); err != nil {
		return report{Err: err.Error()}
	}
	if err := o.out.Decode(&a); err != nil {
		return report{Err: err.Error()}
	}
	return a
}

func (o *others) close() error { return errors.Join(o.in.Close(), o.cmd.Wait()) }
