package agenttest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// node is a machine with an agent.
type node struct {
	m     *mesh
	name  string
	dir   string
	host  *sim.Host
	clock *clock
	tap   *tap // nil if its streams are not tapped
	dead  atomic.Bool
	// configure changes the configuration of the next agent.
	configure func(*agent.Config)

	*daemon // nil while none is running

	mu    sync.Mutex
	ports []uint16
	watch func(sim.Packet)
	stack *sim.Stack // nil until the data path is up for the first time
	tun   *sim.TUN
}

// daemon is a running agent.
type daemon struct {
	agent   *agent.Agent
	network *network
	cancel  context.CancelFunc
	done    chan error
}

func newNode(m *mesh, name string, number int) *node {
	return newNodeOn(m, name, m.net.Host(name+".example", underlay(number)...))
}

func newNodeOn(m *mesh, name string, host *sim.Host) *node {
	return &node{m: m, name: name, dir: m.TempDir(), host: host, clock: &clock{booted: time.Now()}}
}

// clock is a machine's own clock: virtual time, off by some error, and the time since boot.
type clock struct {
	mu     sync.Mutex
	wrong  time.Duration
	booted time.Time
}

// Now implements meshtime.Clock.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.wrong)
}

// Boot implements meshtime.Clock.
func (c *clock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.booted)
}

func (c *clock) reboot(wrong time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.booted, c.wrong = time.Now(), wrong
}

// network is the operating system's network; it gives the machine's programs their addresses.
type network struct {
	osnet.Fake
	n *node
}

// Up implements osnet.Network.
func (w *network) Up(c osnet.Config) error {
	if err := w.Fake.Up(c); err != nil {
		return err
	}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	w.n.stack.SetAddrs(c.Addrs.Slice()...)
	return nil
}

// start starts the agent.
func (n *node) start() {
	n.m.Helper()
	if err := n.tryStart(); err != nil {
		n.m.Fatal(err)
	}
}

func (n *node) tryStart() error {
	network := &network{n: n}
	network.SetEndpoints(n.host.Addrs()...)
	config := agent.Config{
		StateDir: n.dir, Hostname: n.name, Program: "test", Log: n.m.logger(n.name),
		Edges: agent.Edges{
			Clock: n.clock, Dial: n.dial, OpenTUN: n.openTUN, Network: network,
			NewBind: func(c bind.Config) *bind.Bind {
				c.Inner = n.host.Bind()
				return bind.New(c)
			},
			OpenPing: func(netip.Addr) (agent.Pinger, error) { return pinger{n}, nil },
		},
	}
	if n.configure != nil {
		n.configure(&config)
	}
	a, err := agent.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{agent: a, network: network, cancel: cancel, done: make(chan error, 1)}
	go func() { d.done <- a.Run(ctx) }()
	select {
	case <-a.Running():
	case err := <-d.done:
		cancel()
		return err
	}
	n.daemon = d
	return nil
}

func (n *node) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.dead.Load() {
		return nil, errDead
	}
	conn, err := n.host.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return tapped{conn, n.tap, &n.dead}, nil
}

func (n *node) openTUN(name string, mtu int) (tun.Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tun = sim.NewTUN(name, mtu)
	n.stack = sim.NewStack(n.tun)
	n.stack.Listen(n.ports...)
	if n.watch != nil {
		n.stack.Watch(n.watch)
	}
	return n.tun, nil
}

// pinger pings as a program on the machine would.
type pinger struct{ n *node }

// Ping implements agent.Pinger.
func (p pinger) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	return p.n.programs().Ping(ctx, dst)
}

// Close implements agent.Pinger.
func (pinger) Close() error { return nil }

// programs returns the machine's programs that use the network.
func (n *node) programs() *sim.Stack {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stack
}

// kill ends the agent's process at this very moment: nothing that it does afterwards has an effect, on the disk or on the
// Internet. bury removes the process.
func (n *node) kill() {
	n.dead.Store(true)
	n.m.net.ResetStreams(n.host, n.m.center.host)
}

// bury removes what kill left of a process, and starts another one.
func (n *node) bury() {
	n.m.Helper()
	d := n.daemon
	n.daemon = nil
	d.cancel()
	<-d.done
	n.dead.Store(false)
	n.start()
}

// stop ends the agent cleanly, if it is running.
func (n *node) stop() {
	n.m.Helper()
	d := n.daemon
	if d == nil {
		return
	}
	n.daemon = nil
	d.cancel()
	if err := <-d.done; err != nil {
		n.m.Errorf("agent on %s: %v", n.name, err)
	}
}

// restart stops the agent and starts another one. What its programs sent last gets out before: the programs started next use
// the same ports again.
func (n *node) restart() {
	n.m.Helper()
	time.Sleep(2 * latency)
	n.stop()
	n.start()
}

// Up joins with a code, or continues as the node that it is, and waits until the data path runs.
func (n *node) Up(code string) *redoubtv1.Status {
	n.m.Helper()
	st, err := n.TryUp(code, time.Minute)
	if err != nil {
		n.m.Fatalf("%s up: %v", n.name, err)
	}
	return st
}

func (n *node) TryUp(code string, within time.Duration) (*redoubtv1.Status, error) {
	ctx, cancel := n.m.within(within)
	defer cancel()
	return n.agent.Up(ctx, &redoubtv1.UpRequest{Code: code, Hostname: n.name}, func(step string) { n.m.Logf("%s: %s", n.name, step) })
}

// Status returns what `redoubt status` shows.
func (n *node) Status() *redoubtv1.Status {
	n.m.Helper()
	st, err := n.agent.Status(n.m.Context())
	if err != nil {
		n.m.Fatal(err)
	}
	return st
}

// AwaitState waits for a state.
func (n *node) AwaitState(state machine.State, within time.Duration) {
	n.m.Helper()
	n.m.Await(within, n.name+" is "+string(state), func() bool { return n.Status().GetState() == string(state) })
}

// Problem reports whether the status names a problem that contains these words.
func (n *node) Problem(words string) bool {
	n.m.Helper()
	for _, p := range n.Status().GetProblems() {
		if strings.Contains(p, words) {
			return true
		}
	}
	return false
}

// V4 and V6 are the node's addresses in the mesh.
func (n *node) V4() netip.Addr { return n.addr(0) }
func (n *node) V6() netip.Addr { return n.addr(1) }

func (n *node) addr(i int) netip.Addr {
	n.m.Helper()
	all := n.Status().GetNode().GetAddresses()
	if len(all) != 2 {
		n.m.Fatalf("%s has the addresses %v", n.name, all)
	}
	return netip.MustParseAddr(all[i])
}

// Listen opens ports, for TCP and UDP, that outlive the data path.
func (n *node) Listen(ports ...uint16) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = append(n.ports, ports...)
	if n.stack != nil {
		n.stack.Listen(ports...)
	}
}

// Watch calls f with every packet that reaches the machine's programs.
func (n *node) Watch(f func(sim.Packet)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watch = f
	if n.stack != nil {
		n.stack.Watch(f)
	}
}

// Move gives the machine other addresses on the Internet, or none.
func (n *node) Move(addrs ...netip.Addr) {
	n.host.SetAddrs(addrs...)
	if n.daemon != nil {
		n.network.SetEndpoints(addrs...)
	}
}

// patience is how long programs wait for an answer. A first packet waits for a handshake; if both sides begin one at the same
// time, neither completes, and they try again after 5 s.
const patience = 7 * time.Second

// forgotten is how long a node may take to notice that its peer has lost their session, if each attempt waits for patience.
const forgotten = 25 * time.Second

// errSilence means that nothing came back at all.
var errSilence = errors.New("silence")

// Ping sends one echo to an address.
func (n *node) Ping(dst netip.Addr) error {
	ctx, cancel := n.m.within(patience)
	defer cancel()
	_, err := n.programs().Ping(ctx, dst)
	return silence(err)
}

// Ask sends a datagram and waits for its echo.
func (n *node) Ask(dst netip.Addr, port uint16) error {
	ctx, cancel := n.m.within(patience)
	defer cancel()
	answer, err := n.programs().Exchange(ctx, netip.AddrPortFrom(dst, port), []byte("question"))
	if err == nil && string(answer) != "question" {
		err = errors.New("the answer is another one")
	}
	return silence(err)
}

// Connect opens a TCP connection.
func (n *node) Connect(dst netip.Addr, port uint16) (*sim.TCPConn, error) {
	ctx, cancel := n.m.within(patience)
	defer cancel()
	c, err := n.programs().DialTCP(ctx, netip.AddrPortFrom(dst, port))
	return c, silence(err)
}

// Talk sends something on a connection and waits for its echo.
func (n *node) Talk(c *sim.TCPConn) error {
	ctx, cancel := n.m.within(patience)
	defer cancel()
	_, err := c.Echo(ctx, []byte("hello"))
	return silence(err)
}

// Visit opens a TCP connection, talks, and closes it.
func (n *node) Visit(dst netip.Addr, port uint16) error {
	c, err := n.Connect(dst, port)
	if err != nil {
		return err
	}
	defer c.Close()
	return n.Talk(c)
}

func silence(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errSilence
	}
	return err
}

// probe is one way to test whether a node reaches another.
type probe struct {
	name string
	try  func(from, to *node) error
}

// probes returns all of them: every protocol over both families.
func probes(port uint16) []probe {
	return []probe{
		{"ICMP over IPv4", func(from, to *node) error { return from.Ping(to.V4()) }},
		{"ICMP over IPv6", func(from, to *node) error { return from.Ping(to.V6()) }},
		{"UDP over IPv4", func(from, to *node) error { return from.Ask(to.V4(), port) }},
		{"UDP over IPv6", func(from, to *node) error { return from.Ask(to.V6(), port) }},
		{"TCP over IPv4", func(from, to *node) error { return from.Visit(to.V4(), port) }},
		{"TCP over IPv6", func(from, to *node) error { return from.Visit(to.V6(), port) }},
	}
}

// Reaches tries everything; all of it must work.
func (n *node) Reaches(to *node, port uint16) {
	n.m.Helper()
	for _, p := range probes(port) {
		if err := p.try(n, to); err != nil {
			n.m.Errorf("%s does not reach %s by %s: %v", n.name, to.name, p.name, err)
		}
	}
}

// ReachesNot tries everything; none of it may work.
func (n *node) ReachesNot(to *node, port uint16) {
	n.m.Helper()
	for _, p := range probes(port) {
		if err := p.try(n, to); err == nil {
			n.m.Errorf("%s reaches %s by %s", n.name, to.name, p.name)
		}
	}
}
