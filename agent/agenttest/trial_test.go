package agenttest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// trial is a running program.
type trial struct {
	*mesh
	program
	*witness
	rnd     *rand.Rand
	parties []*party
	carries []*carrier
	streams [][2]int // pairs that talk continuously
	flows   []*tried
	policy  law // regardless of which nodes are trusted
	used    int // addresses used so far
	cuts    map[[2]*sim.Host]bool
	away    bool // the coordinator is away

	calm     bool                     // nothing has disturbed the connected pairs since they were checked
	sure     [maxNodes][maxNodes]bool // pairs that were checked
	uprooted bool                     // something moved, or a relay ended, while a node could not hear of it
}

// party is a node of a trial.
type party struct {
	*node
	attachment
	nat     *sim.NAT // nil if none
	locked  string   // the lock on it; empty if none
	revoked bool
	asleep  bool
}

func (p *party) trusted() bool { return p.locked == "" && !p.revoked }

// tried is a TCP connection.
type tried struct {
	from, to int
	conn     *sim.TCPConn
	ended    bool // it may have ended: it was not permitted for a while, or its programs were restarted
}

// carrier is a relay.
type carrier struct {
	name     string
	dir      string
	host     *sim.Host
	clock    *clock
	listener net.Listener
	cancel   context.CancelFunc // nil if it is not running
	done     chan error
}

const relayPort = 3478

func runTrial(t *testing.T, p program) {
	t.Logf("the program:\n%s", p)
	inBubble(t, func(m *mesh) {
		x := &trial{mesh: m, program: p, rnd: rand.New(rand.NewPCG(p.seed, 0)), cuts: map[[2]*sim.Host]bool{}}
		x.witness = &witness{opened: map[[2]netip.AddrPort]bool{}}
		x.fail = func(format string, args ...any) {
			m.Errorf("%s  "+format, append([]any{clockTime(time.Now())}, args...)...)
		}
		m.net.Tap(x.sees)
		m.after = append(m.after, x.close)
		x.build()
		for i, e := range p.events {
			if m.Failed() {
				return
			}
			x.note("event %d: %s", i+1, e.what.words(e))
			e.what.do(x, e)
			x.pass(e.wait)
		}
		if !m.Failed() {
			x.note("the end")
			x.settle()
		}
	})
}

// note logs an event with its time.
func (t *trial) note(format string, args ...any) {
	t.Logf("%s  "+format, append([]any{clockTime(time.Now())}, args...)...)
}

// close ends everything, and checks that nothing is left.
func (t *trial) close() {
	t.net.Tap(nil)
	for _, n := range t.nodes {
		n.stop()
	}
	for _, c := range t.carries {
		t.stop(c)
	}
	t.center.stop()
	time.Sleep(time.Second) // the ends of streams are in flight
	if list := t.net.Open(); len(list) > 0 && !t.Failed() {
		t.Errorf("not closed: %q", list)
	}
}

// build makes the world, in which everyone may reach everyone to begin with.
func (t *trial) build() {
	for i := range t.relays {
		t.addRelay(i)
	}
	for i, k := range t.kinds {
		t.addParty(i, k)
	}
	for i := range t.parties {
		for j := range t.parties {
			if i != j {
				t.policy[i][j] = anything
			}
		}
	}
	t.apply()
	t.net.SetDefault(t.air.Link)
	t.settle()
}

func (t *trial) addRelay(i int) {
	name := fmt.Sprintf("relay%d", i)
	c := &carrier{
		name: name, dir: t.TempDir(), clock: &clock{booted: time.Now()},
		host: t.net.Host(name+".example", netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:ffff::%d", i+1))),
	}
	t.carries = append(t.carries, c)
	code := t.parse(t.Code(func(r *redoubtv1.CreateTokenRequest) { r.Relay = true }))
	t.serve(c, &state.Join{URLs: code.URLs, Root: code.Root, Secret: code.Secret})
}

// serve starts a relay.
func (t *trial) serve(c *carrier, join *state.Join) {
	l, err := c.host.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.listener, c.cancel, c.done = l, cancel, make(chan error, 1)
	cfg := agent.RelayConfig{
		StateDir: c.dir, Join: join, Hostname: c.name, Program: "test", Port: relayPort, Addresses: c.host.Addrs(), Listener: l,
		URLs: []string{"https://" + c.host.Name()}, Log: t.logger(c.name), Clock: c.clock, UDP: c.host.Bind(),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.host.DialContext(ctx, network, address)
		},
	}
	go func() { c.done <- agent.RunRelay(ctx, cfg) }()
}

// stop ends a relay cleanly. Others go on meanwhile.
func (t *trial) stop(c *carrier) {
	if c.cancel == nil {
		return
	}
	c.cancel()
	c.cancel = nil
	for {
		select {
		case err := <-c.done:
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			_ = c.listener.Close() // on a first start, its streams may not have been served yet
			return
		default:
			t.pass(100 * time.Millisecond)
		}
	}
}

func (t *trial) addParty(i int, k attachment) {
	p := &party{}
	host := t.net.Host(fmt.Sprintf("n%d.example", i))
	t.parties = append(t.parties, p)
	p.node = newNodeOn(t.mesh, fmt.Sprintf("n%d", i), host)
	t.place(i, k)
	t.nodes = append(t.nodes, p.node)
	p.start()
	p.Listen(echoPort)
	p.Watch(func(pkt sim.Packet) { t.given(i, pkt) })
	p.Up(t.Code(tags(fmt.Sprintf("tag:n%d", i))))
	a := addrsOf(p.node)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addrs[i] = []netip.Addr{a.V4, a.V6}
}

// place attaches a node's machine to the Internet in another place than before.
func (t *trial) place(i int, k attachment) {
	p := t.parties[i]
	t.used++
	v4, v6 := netip.AddrFrom4([4]byte{198, 51, 100, byte(t.used)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::2", t.used))
	var nat *sim.NAT
	if k.cfg != nil {
		if k.shared && i > 0 && t.parties[i-1].nat != nil {
			nat = t.parties[i-1].nat
		} else {
			name := fmt.Sprintf("NAT %d", t.used)
			if k.carrier {
				inner := netip.AddrFrom4([4]byte{10, 200, byte(t.used), 1})
				nat = t.net.NAT("carrier's "+name, symmetric, v4).NAT(name, *k.cfg, inner)
			} else {
				nat = t.net.NAT(name, *k.cfg, v4)
			}
		}
		v4 = netip.AddrFrom4([4]byte{10, byte(t.used), 0, 2})
	}
	var addrs []netip.Addr
	if k.v4 {
		addrs = append(addrs, v4)
	}
	if k.v6 {
		addrs = append(addrs, v6)
	}
	p.host.MoveTo(nat, addrs...)
	if p.daemon != nil {
		p.network.SetEndpoints(addrs...)
	}
	p.attachment, p.nat = k, nat
}

// law returns what the policy and the trust in nodes amount to.
func (t *trial) law() law {
	l := t.policy
	for i, p := range t.parties {
		for j := range t.parties {
			if !p.trusted() {
				l[i][j], l[j][i] = 0, 0
			}
		}
	}
	return l
}

// enact makes the current law known to the witness: nodes may hold it as soon as they hear of it.
func (t *trial) enact() {
	l := t.law()
	t.pronounce(l)
	for _, f := range t.flows {
		f.ended = f.ended || l[f.from][f.to]&tcp == 0
	}
}

// apply puts the policy in force.
func (t *trial) apply() {
	t.enact()
	type grant struct {
		Src []string `json:"src"`
		Dst []string `json:"dst"`
		IP  []string `json:"ip"`
	}
	owners, grants := map[string][]string{}, []grant{}
	for i := range t.parties {
		owners[fmt.Sprintf("tag:n%d", i)] = []string{}
		for j := range t.parties {
			var ip []string
			for _, x := range []struct {
				what service
				text string
			}{{ping, "icmp:*"}, {ping, "icmpv6:*"}, {udp, fmt.Sprintf("udp:%d", echoPort)}, {tcp, fmt.Sprintf("tcp:%d", echoPort)}} {
				if t.policy[i][j]&x.what != 0 {
					ip = append(ip, x.text)
				}
			}
			if ip != nil {
				grants = append(grants, grant{[]string{fmt.Sprintf("tag:n%d", i)}, []string{fmt.Sprintf("tag:n%d", j)}, ip})
			}
		}
	}
	source := must(json.Marshal(map[string]any{
		"tagOwners": owners, "grants": grants, "node": map[string]string{"certLifetime": "10m"}, "outage": map[string]string{"grace": "24h"},
	}))(t.T)
	if _, err := t.center.admin().ApplyPolicy(t.Context(), &redoubtv1.ApplyPolicyRequest{Source: string(source)}); err != nil {
		t.Fatal(err)
	}
}

// disturb records an event after which packets may be lost for a while.
func (t *trial) disturb() {
	t.calm = false
	t.excuse()
}

// pass lets time pass, in which the pairs that talk do so.
func (t *trial) pass(d time.Duration) {
	every := max(d/30, 20*time.Millisecond)
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(min(every, time.Until(end))) {
		for _, s := range t.streams {
			t.send(saying{from: s[0], to: s[1], what: udp, owed: t.calm && t.sure[s[0]][s[1]] && t.air.lossless()}, 0)
		}
	}
}

// send sends a packet between two nodes, over a random family.
func (t *trial) send(s saying, size int) *saying {
	f := t.rnd.IntN(2)
	if !s.src.IsValid() {
		s.src = t.addrs[s.from][f]
	} else if s.src.Is6() {
		f = 1
	} else {
		f = 0
	}
	s.dst = t.addrs[s.to][f]
	p := t.parties[s.from]
	said, packet := t.say(s, size)
	p.mu.Lock()
	device := p.tun
	p.mu.Unlock()
	device.Send(packet)
	return said
}

// hears reports whether a node can talk to the coordinator.
func (t *trial) hears(p *party) bool {
	return !t.away && !p.asleep && !t.cut(p.host, t.center.host)
}

func pairOf(a, b *sim.Host) [2]*sim.Host {
	if a.Name() > b.Name() {
		a, b = b, a
	}
	return [2]*sim.Host{a, b}
}

func (t *trial) cut(a, b *sim.Host) bool { return t.cuts[pairOf(a, b)] }

// possible reports whether the world lets two nodes reach each other.
func (t *trial) possible(i, j int) bool {
	a, b := t.parties[i], t.parties[j]
	if a.asleep || b.asleep || !a.trusted() || !b.trusted() {
		return false
	}
	informed := t.hears(a) && t.hears(b)
	if !informed && t.uprooted {
		return false
	}
	carried := false
	for _, c := range t.carries {
		if c.cancel == nil {
			continue
		}
		if t.cut(a.host, c.host) || t.cut(b.host, c.host) {
			return false // it may be the other node's home relay
		}
		carried = true
	}
	direct := a.nat == nil && b.nat == nil && !t.cut(a.host, b.host) && (a.v4 && b.v4 || a.v6 && b.v6)
	return carried || direct
}

// The longest times allowed.
const (
	reconnect = 3 * time.Minute  // a node to its coordinator
	recovery  = 60 * time.Second // two nodes that may reach each other
)

// settle waits until everything is as it should be.
func (t *trial) settle() {
	for _, p := range t.parties {
		if t.hears(p) && p.trusted() {
			t.Await(reconnect, p.name+" is connected with the coordinator", func() bool { return p.Status().GetCoordinator().GetConnected() })
		}
	}
	if !t.away {
		t.acknowledge()
	}
	t.connect()
	t.checkFlows()
	t.settleDebts()
	if !slices.ContainsFunc(t.parties, func(p *party) bool { return !t.hears(p) && p.trusted() }) {
		t.uprooted = false
	}
}

// acknowledge waits until all nodes that hear of it enforce the newest law.
func (t *trial) acknowledge() {
	lags := map[string]bool{}
	within := 10 * time.Second
	if !t.calm {
		within = reconnect // streams may be dead without anyone knowing yet
	}
	for _, l := range t.laggards(within) {
		lags[l.GetName()] = true
		i := slices.IndexFunc(t.parties, func(p *party) bool { return p.name == l.GetName() })
		if i >= 0 && t.hears(t.parties[i]) {
			t.Errorf("%s enforces version %q after %v, not %q", l.GetName(), l.GetApplied(), within, l.GetWanted())
		}
	}
	for i, p := range t.parties {
		if p.trusted() && !lags[p.name] {
			t.holds(i)
		}
	}
}

// connect waits until all nodes that may reach each other do, and checks that no others do.
func (t *trial) connect() {
	type try struct {
		i, j int
		what service
		last *saying
	}
	var open []*try
	l := t.law()
	t.sure = [maxNodes][maxNodes]bool{}
	for i := range t.parties {
		for j := range t.parties {
			if i == j {
				continue
			}
			for _, what := range []service{ping, udp} {
				if l[i][j]&what != 0 && t.possible(i, j) && t.newest(i) && t.newest(j) {
					open = append(open, &try{i: i, j: j, what: what})
					t.sure[i][j] = true
				} else if l[i][j]&what == 0 {
					t.send(saying{from: i, to: j, what: what}, 0) // the witness reports it if it arrives
				}
			}
		}
	}
	end := time.Now().Add(recovery)
	for len(open) > 0 && time.Now().Before(end) {
		for _, x := range open {
			x.last = t.send(saying{from: x.i, to: x.j, what: x.what}, 1200)
		}
		for range 10 {
			t.pass(100 * time.Millisecond)
			open = slices.DeleteFunc(open, func(x *try) bool { return t.answered(x.last) })
			if len(open) == 0 {
				break
			}
		}
	}
	for _, x := range open {
		a, b := t.parties[x.i], t.parties[x.j]
		t.Errorf("after %v n%d does not reach n%d by %v, which is allowed and possible; n%d has %v, n%d has %v", recovery, x.i, x.j, x.what,
			x.i, a.Status().GetPeers(), x.j, b.Status().GetPeers())
	}
	if took := recovery - time.Until(end); took > flight {
		t.note("that took %v", took)
	}
	t.calm = true
}

// checkFlows checks the TCP connections: they live as long as they are allowed, and no longer.
func (t *trial) checkFlows() {
	l := t.law()
	t.flows = slices.DeleteFunc(t.flows, func(f *tried) bool {
		from := t.parties[f.from]
		switch {
		case l[f.from][f.to]&tcp == 0:
			if f.conn.Err() == nil && t.newest(f.from) && !from.asleep {
				t.Errorf("a connection from n%d to n%d outlives its permission", f.from, f.to)
			}
			return t.newest(f.from)
		case f.ended:
			return true
		case !t.possible(f.from, f.to):
			return false
		}
		var err error
		for range 4 {
			if err = from.Talk(f.conn); err == nil {
				return false
			}
		}
		t.Errorf("a connection from n%d to n%d that is allowed: %v", f.from, f.to, err)
		return true
	})
}
