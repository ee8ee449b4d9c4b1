package main

import (
	"bufio"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// command is a request to a worker.
type command struct {
	Do    string   // join, drop, attach, mark, collect, report, renew
	Codes []string // join: one per node
	Node  int      // report: which node, and the port of the endpoint that it reports
	Port  uint16
	Count int           // renew: how many nodes, one after the other
	Over  time.Duration // renew: over what time
}

// answer is a worker's response when the command is done.
type answer struct {
	Err     string
	Touched []touched // collect: the nodes that received any update since mark
	Silent  int64     // bytes received by all others
}

type touched struct {
	At    int64 // when the last update came, in Unix nanoseconds
	Bytes int64
}

// atOnce is how many machines of a worker join concurrently.
const atOnce = 32

// node is a machine without a data path.
type node struct {
	device key.DevicePrivate
	key    key.NodePrivate
	code   join.Code
	self   *identity.Self
	held   *control.Held // from enrolment until it attaches
	client atomic.Pointer[control.Client]

	bytes atomic.Int64 // received since mark

	mu     sync.Mutex
	netmap *proto.Netmap // nil before the first; immutable
	light  bool          // netmap has only some of the peers, see heavy
	opened chan struct{} // closed when the next stream opens; nil if it has
	done   chan error    // receives the result of a renewal
	at     int64         // when the last update since mark arrived, in Unix nanoseconds; 0: none did
}

func worker(in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	enc := json.NewEncoder(out)
	var w crowd
	defer w.drop()
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		var a answer
		if err := w.do(c, &a); err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

type crowd []*node

func (w *crowd) do(c command, a *answer) error {
	switch c.Do {
	case "join":
		return w.join(c.Codes)
	case "drop":
		w.drop()
	case "attach":
		w.attach(*w)
	case "mark":
		for _, n := range *w {
			n.mu.Lock()
			n.at = 0
			n.bytes.Store(0)
			n.mu.Unlock()
		}
	case "collect":
		w.collect(a)
	case "report":
		e := proto.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), c.Port), Kind: proto.EndpointInterface}
		(*w)[c.Node].client.Load().Report(proto.Reach{Endpoints: []proto.Endpoint{e}}, c.Port)
	case "renew":
		return w.renew(c.Count, c.Over)
	default:
		return fmt.Errorf("worker: no command %q", c.Do)
	}
	return nil
}

func (w *crowd) join(codes []string) error {
	nodes := make([]*node, len(codes))
	errs := make([]error, len(codes))
	var all sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, text := range codes {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			nodes[i], errs[i] = newNode(text)
			if errs[i] == nil {
				w.attach(nodes[i : i+1])
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	*w = append(*w, nodes...)
	return nil
}

func newNode(text string) (*node, error) {
	n := &node{done: make(chan error, 1)}
	var err error
	if n.code, err = join.Parse(text); err != nil {
		return nil, err
	}
	if n.device, err = key.NewDevice(crand.Reader); err != nil {
		return nil, err
	}
	if n.key, err = key.NewNode(crand.Reader); err != nil {
		return nil, err
	}
	n.self, n.held, err = control.Enrol(context.Background(), n.config(), enroll.Request{
		Device: n.device, Node: n.key, Token: n.code.Secret, Root: n.code.Root, Hostname: "node", Program: "bench",
	})
	return n, err
}

func (n *node) config() control.Config {
	return control.Config{
		Dial: n.dial, Now: time.Now, Heard: func(time.Time) {}, Rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		URLs: n.code.URLs, Device: n.device, Program: "bench", Hostname: "node", Emit: n.emit,
	}
}

// counted counts received bytes.
type counted struct {
	net.Conn
	n *node
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.bytes.Add(int64(n))
	return n, err
}

func (n *node) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &counted{c, n}, nil
}

// emit handles the client's events and accepts everything.
func (n *node) emit(_ context.Context, e machine.Event) {
	switch e := e.(type) {
	case machine.Connected:
		n.mu.Lock()
		if n.opened != nil && n.netmap != nil { // it resumes, and may receive nothing
			close(n.opened)
			n.opened = nil
		}
		n.mu.Unlock()
	case machine.Snapshot:
		n.enforce(e.Netmap)
	case machine.Change:
		nm, err := n.apply(e.Delta)
		if err != nil {
			fmt.Fprintln(os.Stderr, "node:", err) // never acknowledged, which ends the measurement
			return
		}
		n.enforce(nm)
	case machine.Renewed:
		n.self = e.Self
		n.client.Load().SetSelf(e.Self)
		n.done <- nil
	case machine.RenewFailed:
		n.done <- errors.New(e.Reason)
	case machine.Trouble:
		fmt.Fprintln(os.Stderr, "node:", e.Reason)
	case machine.Refused:
		if e.Kind == machine.RefusedForNow { // other refusals are what is measured
			fmt.Fprintln(os.Stderr, "node refused:", e.Message)
		}
	}
}

// heavy is the most peers that a node keeps in full. With ten thousand nodes that all see each other, no machine can hold all
// netmaps: such a node keeps some of the peers and accepts deltas by version alone.
const heavy = 1000

func (n *node) apply(d *proto.Delta) (*proto.Netmap, error) {
	n.mu.Lock()
	nm, light := n.netmap, n.light
	n.mu.Unlock()
	switch {
	case !light:
		return nm.Apply(d)
	case d.From != nm.Version:
		return nil, proto.ErrVersion
	}
	next := *nm
	next.Version = d.To
	return &next, nil
}

// talking is how many of its peers a node claims to talk with.
const talking = 3

// renew makes count nodes renew, evenly spread over a period.
func (w *crowd) renew(count int, over time.Duration) error {
	tick := time.NewTicker(over / time.Duration(count))
	defer tick.Stop()
	errs := make(chan error, count)
	for i := range count {
		n := (*w)[i*len(*w)/count]
		go func() { errs <- n.renew() }()
		<-tick.C
	}
	var all []error
	for range count {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

func (n *node) renew() error {
	next, err := key.NewNode(crand.Reader)
	if err != nil {
		return err
	}
	r := control.Renewal{Node: next, Ticket: n.self.Record.Ticket}
	for _, p := range n.knows().Peers[:min(talking, len(n.knows().Peers))] {
		r.Talking = append(r.Talking, p.ID)
	}
	n.client.Load().Renew(r)
	return <-n.done
}

// knows returns the node's netmap.
func (n *node) knows() *proto.Netmap {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.netmap
}

func (n *node) enforce(nm *proto.Netmap) {
	n.mu.Lock()
	if len(nm.Peers) > heavy {
		nm, n.light = &proto.Netmap{Version: nm.Version, Peers: slices.Clone(nm.Peers[:talking])}, true
	}
	n.netmap, n.at = nm, time.Now().UnixNano()
	opened := n.opened
	n.opened = nil
	n.ack()
	n.mu.Unlock()
	if opened != nil {
		close(opened)
	}
}

// ack acknowledges what the node enforces. The caller holds n.mu, because the last version sent is the one that counts.
func (n *node) ack() {
	if c := n.client.Load(); c != nil {
		c.Ack(n.netmap.Version)
	}
}

// attach opens the streams of nodes, all at once, and waits until they are open.
func (w *crowd) attach(nodes []*node) {
	for _, n := range nodes {
		n.mu.Lock()
		opened, applied := make(chan struct{}), proto.Version{}
		if n.netmap != nil {
			applied = n.netmap.Version
		}
		n.opened = opened
		n.mu.Unlock()
		c := control.Attach(n.config(), n.self, applied, n.held)
		n.held = nil
		n.client.Store(c)
		defer func() { <-opened; n.again() }()
	}
}

// again acknowledges what arrived before there was a client to acknowledge it with.
func (n *node) again() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ack()
}

func (w *crowd) drop() {
	var all sync.WaitGroup
	for _, n := range *w {
		all.Go(func() {
			if c := n.client.Swap(nil); c != nil {
				c.Close()
			}
		})
	}
	all.Wait()
}

func (w *crowd) collect(a *answer) {
	for _, n := range *w {
		n.mu.Lock()
		if n.at != 0 {
			a.Touched = append(a.Touched, touched{n.at, n.bytes.Load()})
		} else {
			a.Silent += n.bytes.Load()
		}
		n.mu.Unlock()
	}
}
