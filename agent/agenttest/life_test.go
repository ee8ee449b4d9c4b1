package agenttest

import (
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		ann, db, web := m.Join("laptop", user("ann@example.com")), m.Join("db", tags("tag:db")), m.Join("web", tags("tag:web"))
		for _, n := range m.nodes {
			n.Listen(22, 80)
		}
		ann.ReachesNot(db, 22)
		m.Policy(open)
		for _, a := range m.nodes {
			for _, b := range m.nodes {
				if a != b {
					a.Reaches(b, 22)
				}
			}
		}

		m.Policy(`{
			"tagOwners": {"tag:db": [], "tag:web": []},
			"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22", "icmp:*"]}],
		}`)
		if err := ann.Visit(db.V4(), 22); err != nil {
			t.Error(err)
		}
		if err := ann.Visit(db.V6(), 22); err != nil {
			t.Error(err)
		}
		if err := ann.Ping(db.V4()); err != nil {
			t.Error(err)
		}
		for name, c := range map[string]struct{ got, want error }{
			"another port":         {ann.Visit(db.V4(), 80), sim.ErrReset},
			"another protocol":     {ann.Ask(db.V4(), 22), sim.ErrProhibited},
			"the other direction":  {db.Visit(ann.V4(), 22), sim.ErrReset},
			"another family":       {ann.Ping(db.V6()), sim.ErrProhibited},
			"a node of other tags": {ann.Visit(web.V6(), 22), sim.ErrReset},
		} {
			if !errors.Is(c.got, c.want) {
				t.Errorf("%s: %v, want %v", name, c.got, c.want)
			}
		}
		web.ReachesNot(db, 22)
		if peers := web.Status().GetPeers(); len(peers) != 0 {
			t.Errorf("a node that no rule names knows of %v", peers)
		}
	})
}

func TestPolicyChangeEndsFlows(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		c4, err4 := a.Connect(b.V4(), 22)
		c6, err6 := a.Connect(b.V6(), 22)
		if err4 != nil || err6 != nil {
			t.Fatal(err4, err6)
		}
		for _, c := range []*sim.TCPConn{c4, c6} {
			if err := a.Talk(c); err != nil {
				t.Fatal(err)
			}
		}
		far := b.programs().Accepted()
		if len(far) != 2 {
			t.Fatalf("%d connections arrived", len(far))
		}
		m.Policy(closed)
		time.Sleep(100 * time.Millisecond) // the resets are in flight
		for _, c := range append(far, c4, c6) {
			if err := c.Err(); !errors.Is(err, sim.ErrReset) {
				t.Errorf("a connection that is not allowed any more: %v", err)
			}
		}
		a.ReachesNot(b, 22)
		m.Policy(open)
		a.Reaches(b, 22)
	})
}

func TestRenewForTenHours(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		c, err := a.Connect(b.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		addrs := a.Status().GetNode().GetAddresses()
		for i, end := 0, time.Now().Add(10*time.Hour); time.Now().Before(end); i++ {
			if err := errors.Join(a.Ping(b.V4()), b.Ping(a.V6()), a.Talk(c)); err != nil {
				t.Fatalf("after %v: %v", time.Since(a.clock.booted), err)
			}
			if i%10 == 0 {
				for _, n := range m.nodes {
					st := n.Status()
					if left := time.Until(time.Unix(st.GetNode().GetCertificateExpires(), 0)); left < 20*time.Minute || len(st.GetProblems()) > 0 {
						t.Fatalf("%s has %v left and the problems %q", n.name, left, st.GetProblems())
					}
				}
			}
			time.Sleep(100 * time.Second)
		}
		for _, n := range m.Nodes() {
			if s := n.GetCertificateSequence(); s < 18 || s > 24 {
				t.Errorf("%s has certificate number %d after ten hours", n.GetName(), s)
			}
		}
		if now := a.Status().GetNode().GetAddresses(); now[0] != addrs[0] || now[1] != addrs[1] {
			t.Errorf("the addresses were %v and are %v", addrs, now)
		}
	})
}

func TestCoordinatorGoesAndComesBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		c, err := a.Connect(b.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		before := a.Status().GetPolicyVersion()
		m.center.stop()
		for range 60 {
			if err := errors.Join(a.Talk(c), b.Ping(a.V6())); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		if st := a.Status(); st.GetCoordinator().GetConnected() || !a.Problem("no coordinator since") {
			t.Errorf("while the coordinator is away: %v", st)
		}
		m.center.start()
		m.Await(90*time.Second, "all are connected", func() bool {
			return a.Status().GetCoordinator().GetConnected() && b.Status().GetCoordinator().GetConnected()
		})
		m.Settle()
		for _, n := range m.nodes {
			if st := n.Status(); st.GetState() != string(machine.StateRunning) || len(st.GetProblems()) > 0 {
				t.Errorf("%s afterwards: %v", n.name, st)
			}
		}
		if after := a.Status().GetPolicyVersion(); version(t, after).Less(version(t, before)) {
			t.Errorf("version %s came after version %s", after, before)
		}
		if err := a.Talk(c); err != nil {
			t.Errorf("the connection from before: %v", err)
		}
		m.Policy(closed)
		if after := a.Status().GetPolicyVersion(); !version(t, before).Less(version(t, after)) {
			t.Errorf("version %s came after version %s", after, before)
		}
		a.ReachesNot(b, 22)
		third := m.Join("c", tags("tag:db"))
		m.Policy(open)
		third.Reaches(b, 22)
	})
}

// TestCertificatesRunOut checks how long an agent goes on without its coordinator, and what it reports.
func TestCertificatesRunOut(t *testing.T) {
	t.Parallel()
	const lifetime, skew = time.Hour, time.Minute
	for name, grace := range map[string]time.Duration{"without grace": 0, "less than is left": 10 * time.Minute, "more than is left": 100 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(m *mesh) {
				m.center.configure = func(c *coordinator.Config) { c.Grace, c.NodeLifetime = &grace, lifetime }
				m.center.restart()
				a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
				b.Listen(22)
				m.Policy(open)
				a.clock.reboot(-26 * time.Hour) // its own clock is wrong, but it has heard the coordinator's
				a.restart()
				m.Settle()
				time.Sleep(5 * time.Minute)
				m.center.stop()
				last := time.Now()
				// The end of the certificate that ends first, or of the grace, whichever comes later.
				ends := time.Unix(min(a.Status().GetNode().GetCertificateExpires(), b.Status().GetNode().GetCertificateExpires()), 0).Add(skew)
				if byGrace := last.Add(grace); byGrace.After(ends) {
					ends = byGrace
				}
				for time.Until(ends) > time.Minute {
					if err := a.Ping(b.V4()); err != nil {
						t.Fatalf("%v before the end: %v", time.Until(ends), err)
					}
					time.Sleep(time.Minute)
				}
				time.Sleep(time.Until(ends.Add(-30 * time.Second)))
				a.Reaches(b, 22)
				c, err := a.Connect(b.V4(), 22)
				if err != nil {
					t.Fatal(err)
				}
				// Contact is counted by keepalives, so the last one may be that much older than the stop.
				time.Sleep(time.Until(ends.Add(time.Second)))
				if c.Err() == nil {
					t.Error("a connection outlives the certificates")
				}
				a.ReachesNot(b, 22)
				b.ReachesNot(a, 22)
				if st := a.Status(); st.GetState() != string(machine.StateExpired) && len(st.GetPeers()) > 0 {
					t.Errorf("afterwards: %v", st)
				}
				if !a.Problem("certificate is not valid") && !a.Problem("its certificate expired") {
					t.Errorf("the status does not say why: %q", a.Status().GetProblems())
				}
				time.Sleep(time.Hour)
				a.ReachesNot(b, 22)
				m.center.start()
				m.Await(3*time.Minute, "all run again", func() bool {
					return a.Status().GetState() == string(machine.StateRunning) && b.Status().GetState() == string(machine.StateRunning) &&
						len(a.Status().GetPeers()) == 1 && len(b.Status().GetPeers()) == 1
				})
				a.Reaches(b, 22)
				if p := a.Status().GetProblems(); len(p) > 0 {
					t.Errorf("problems afterwards: %q", p)
				}
			})
		})
	}
}

func TestRestartWithoutCoordinator(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		grace := 30 * time.Minute
		m.center.configure = func(c *coordinator.Config) { c.Grace = &grace }
		m.center.restart()
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.Reaches(b, 22)
		m.center.stop()
		a.restart()
		a.AwaitState(machine.StateRunning, time.Second)
		a.Reaches(b, 22)
		b.restart()
		m.Await(forgotten, "a node that started again is reached", func() bool { return a.Ping(b.V4()) == nil })
		a.Reaches(b, 22)
		time.Sleep(2 * time.Hour) // certificates and grace have ended
		a.restart()
		a.AwaitState(machine.StateExpired, time.Second)
		b.restart()
		a.ReachesNot(b, 22)
		m.center.start()
		a.AwaitState(machine.StateRunning, 2*time.Minute)
		b.AwaitState(machine.StateRunning, 2*time.Minute)
		m.Settle()
		m.Await(forgotten, "they reach each other again", func() bool { return a.Ping(b.V4()) == nil })
		a.Reaches(b, 22)
	})
}

// TestRestartIsSparedSignatures checks that the signatures verified before a clean stop are on the disk, and that a start
// relies on them.
func TestRestartIsSparedSignatures(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.Reaches(b, 22)
		m.center.stop()

		// Spoiling a signature shows whether it is verified.
		a.stop()
		d := must(state.Open(a.dir, time.Now()))(t)
		loaded := must(d.Load())(t)
		if len(loaded.Checked) != 1 {
			t.Fatalf("%d signatures are listed, of one peer", len(loaded.Checked))
		}
		der := loaded.Netmap.Peers[0].Certificate
		der[len(der)-1] ^= 1
		issuer := sha256.Sum256(loaded.Netmap.Authorities[0])
		spoiled := sha256.Sum256(append(issuer[:], der...))
		for _, listed := range []bool{false, true} {
			if listed {
				if err := d.SaveChecked(loaded.Nodes[0], []cert.Signature{spoiled}); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(d.SaveNetmap(loaded.Netmap), d.Close()); err != nil {
				t.Fatal(err)
			}
			a.start()
			a.AwaitState(machine.StateRunning, time.Second)
			if known := len(a.Status().GetPeers()) == 1 && !a.Problem("signature"); known != listed {
				t.Errorf("with the signature listed: %v; the peer is known: %v\n%v", listed, known, a.Status())
			}
			a.stop()
			d = must(state.Open(a.dir, time.Now()))(t)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNodeMoves(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		c, err := a.Connect(b.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		try := func(what string) {
			t.Helper()
			m.Await(forgotten, "the connection works "+what, func() bool { return a.Talk(c) == nil })
			if err := errors.Join(b.Ping(a.V4()), a.Ping(b.V6())); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		b.Move(underlay(77)...)
		try("after the server moved")
		a.Move(underlay(78)...)
		try("after the client moved")
		a.Move(underlay(79)...)
		b.Move(underlay(80)...)
		try("after both moved at once")
		b.Move()
		time.Sleep(10 * time.Minute)
		if err := a.Ping(b.V4()); err == nil {
			t.Error("a node without a network answers")
		}
		b.Move(underlay(81)...)
		try("after the server was away for ten minutes")
		if e := a.Status().GetPeers()[0].GetEndpoint(); e == "" {
			t.Error("the status does not say where the peer is")
		}

		m.center.stop()
		a.Move(underlay(82)[0])
		try("after the client moved while the coordinator was away")
		m.center.start()
		m.Await(2*time.Minute, "all are connected", func() bool {
			return a.Status().GetCoordinator().GetConnected() && b.Status().GetCoordinator().GetConnected()
		})
		try("after the coordinator came back")
	})
}

func TestNodeLeavesAndComesBack(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		addrs := b.Status().GetNode().GetAddresses()
		ctx, cancel := m.within(time.Minute)
		defer cancel()
		if err := b.agent.Down(ctx); err != nil {
			t.Fatal(err)
		}
		if _, up := b.network.Config(); up {
			t.Error("the host's network is not as it was")
		}
		b.stop()
		time.Sleep(15 * time.Minute)
		b.Move(underlay(50)...)
		b.start()
		if st := b.Status(); st.GetState() != string(machine.StateDown) {
			t.Errorf("a node that was set down is %s after a restart", st.GetState())
		}
		st := b.Up("")
		if now := st.GetNode().GetAddresses(); now[0] != addrs[0] || now[1] != addrs[1] {
			t.Errorf("the addresses were %v and are %v", addrs, now)
		}
		m.Await(20*time.Second, "it is reached again", func() bool { return a.Ping(b.V4()) == nil })
		a.Reaches(b, 22)
	})
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b, bad := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db")), m.Join("bad", user("bob@example.com"))
		for _, n := range m.nodes {
			n.Listen(22)
		}
		m.Policy(open)
		out, err1 := bad.Connect(b.V4(), 22)
		in, err2 := a.Connect(bad.V6(), 22)
		other, err3 := a.Connect(b.V4(), 22)
		if err := errors.Join(err1, err2, err3, bad.Talk(out), a.Talk(in), a.Talk(other)); err != nil {
			t.Fatal(err)
		}
		far := bad.programs().Accepted()
		addr := bad.V4()
		begun := time.Now()
		answer, err := m.center.admin().RevokeNode(m.Context(), &redoubtv1.RevokeNodeRequest{Node: "bad", Reason: "stolen"})
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetHolders() != 2 || answer.GetEnforced() != 2 || time.Since(begun) > time.Second {
			t.Errorf("after %v: %v", time.Since(begun), answer)
		}
		time.Sleep(100 * time.Millisecond)
		for what, c := range map[string]*sim.TCPConn{"its own": out, "one to it": in, "one to it, on its side": far[0]} {
			if c.Err() == nil {
				t.Errorf("a connection lives on: %s", what)
			}
		}
		if err := a.Talk(other); err != nil {
			t.Errorf("a connection of others: %v", err)
		}
		if err := a.Ping(addr); err == nil {
			t.Error("the revoked node answers")
		}
		bad.AwaitState(machine.StateRevoked, time.Second)
		if !bad.Problem("stolen") && !bad.Problem("revoked") {
			t.Errorf("the revoked node says %q", bad.Status().GetProblems())
		}
		bad.ReachesNot(b, 22)
		bad.restart()
		bad.AwaitState(machine.StateRevoked, time.Second)
		bad.ReachesNot(b, 22)
		if _, err := bad.TryUp("", time.Minute); !errors.Is(err, machine.ErrRevoked) {
			t.Errorf("up without a code: %v", err)
		}
		bad.Up(m.Code(user("bob@example.com")))
		m.Settle()
		bad.Reaches(b, 22)
		if bad.V4() == addr {
			t.Error("the address of a revoked node was given again")
		}
	})
}

// TestRevokedWhileAway checks that an agent revoked while it was away hears of it on its return, and that the others know before.
func TestRevokedWhileAway(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.Reaches(b, 22)
		m.net.Cut(b.host, m.center.host)
		if _, err := m.center.admin().RevokeNode(m.Context(), &redoubtv1.RevokeNodeRequest{Node: "b"}); err != nil {
			t.Fatal(err)
		}
		a.ReachesNot(b, 22)
		b.ReachesNot(a, 22)
		m.net.Heal(b.host, m.center.host)
		b.AwaitState(machine.StateRevoked, 3*time.Minute)
	})
}

// TestWeekend checks a laptop that comes back with a certificate that ended two days ago.
func TestWeekend(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		b, laptop := m.Join("b", tags("tag:db")), m.Join("laptop", user("ann@example.com"))
		b.Listen(22)
		m.Policy(open)
		laptop.Reaches(b, 22)
		laptop.stop()
		time.Sleep(100 * time.Minute)
		if peers := b.Status().GetPeers(); len(peers) != 0 {
			t.Errorf("a node whose certificate ended is still a peer: %v", peers)
		}
		b.stop() // the next days are long enough without it
		time.Sleep(60 * time.Hour)
		b.start()
		b.AwaitState(machine.StateRunning, 10*time.Second)
		laptop.clock.reboot(0)
		begun := time.Now()
		laptop.start()
		laptop.AwaitState(machine.StateRunning, 10*time.Second)
		m.Settle()
		if err := b.Ping(laptop.V4()); err != nil { // its endpoints were reported before it had renewed
			t.Errorf("the laptop is not found: %v", err)
		}
		laptop.Reaches(b, 22)
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		if n := m.Nodes()["laptop"]; n.GetCertificateSequence() != 2 {
			t.Errorf("it has certificate number %d", n.GetCertificateSequence())
		}
	})
}
