package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// lockJSON is the output of `lock create --json`.
type lockJSON struct {
	Lock struct {
		ID    string
		Nodes int
	}
	Holders, Enforced int
	EnforcedMs        float64
	Bound             time.Time
	Laggards          []struct{ Name string }
}

// TestLock locks a user whose machine has open connections, and unlocks them.
func TestLock(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("bad", "ann@example.com", "web", "tag:web", "other", "tag:web")
	bad, web, other := nodes[0], nodes[1], nodes[2]
	spare := r.token("--user", "ann@example.com", "--reusable")
	in := r.tcpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	out := r.tcpFlow(web.Host, bad.Host, netip.AddrPortFrom(bad.v6, 80))
	packets := r.udpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	answers := r.udpFlow(web.Host, bad.Host, netip.AddrPortFrom(bad.v4, 81))
	bystander := r.tcpFlow(other.Host, web.Host, netip.AddrPortFrom(web.v6, 80))
	for _, f := range []*tcpFlow{in, out, bystander} {
		r.lives(f, 20)
	}
	r.arrives(packets, 20)
	r.arrives(answers, 20)

	var made lockJSON
	r.adminJSON(&made, "lock", "create", "--user", "ann@example.com", "--reason", "left the company")
	if made.Holders != 2 || made.Enforced != 2 || made.Lock.Nodes != 1 {
		t.Errorf("%+v", made)
	}
	t.Logf("enforced everywhere after %.1f ms", made.EnforcedMs)
	r.silent(packets)
	r.silent(answers)
	r.reset(in)
	r.reset(out)
	r.lives(bystander, 50)
	bad.awaitState("locked")
	r.contains(bad.fails(exitFalse, "status"), "locked", "left the company", "lock delete "+made.Lock.ID)
	r.contains(bad.fails(exitFalse, "up"), "locked", "left the company")
	fresh := r.machine("fresh")
	r.contains(fresh.fails(exitFalse, "up", spare), "locked", "left the company")
	for _, n := range []*member{web, other} {
		if st := n.status(); len(st.Peers) != 1 || st.Peers[0].Name == "bad" {
			t.Errorf("%s knows of %+v", n.Name, st.Peers)
		}
	}
	r.contains(r.admin("node", "list"), "locked")
	r.contains(r.admin("lock", "list"), made.Lock.ID, "user ann@example.com")
	// It must not come back by itself, whatever it does.
	if err := bad.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	bad.start()
	bad.awaitState("locked")
	r.silent(packets)

	r.contains(r.admin("lock", "delete", made.Lock.ID), "1 machine trusted again")
	begin := time.Now()
	bad.awaitState("running")
	t.Logf("back %v after the end of the lock", time.Since(begin).Round(time.Millisecond))
	r.settle()
	r.arrives(packets, 20)
	r.arrives(answers, 20)
	r.lives(r.tcpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 82)), 20)
	r.lives(bystander, 20)
	fresh.join(spare)

	// A lock with a limited lifetime ends by itself.
	r.contains(r.admin("lock", "create", "--node", "bad", "--ttl", "5s"), "node bad is locked", "all 3 nodes")
	r.silent(packets)
	bad.awaitState("running")
	r.arrives(packets, 20)
	var audit struct{ Records []struct{ Action string } }
	r.adminJSON(&audit, "audit", "list", "--node", "bad")
	seen := map[string]bool{}
	for _, a := range audit.Records {
		seen[a.Action] = true
	}
	for _, want := range []string{"node.enroll", "lock.create", "lock.expire", "node.renew.refuse"} {
		if !seen[want] {
			t.Errorf("the audit log of bad says nothing of %s: %v", want, audit)
		}
	}
}

// shut adds a table of rules to a host until open is called.
func (r *rig) shut(h *lab.Host, rules func(*nftables.Conn, *nftables.Table)) (open func()) {
	r.Helper()
	change := func(f func(*nftables.Conn)) {
		err := h.Do(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			f(conn)
			return conn.Flush()
		})
		if err != nil {
			r.Fatal(err)
		}
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "cut"}
	change(func(conn *nftables.Conn) {
		conn.AddTable(table)
		rules(conn, table)
	})
	return func() { change(func(conn *nftables.Conn) { conn.DelTable(table) }) }
}

// cut separates a host from its coordinator, without either noticing, until heal is called.
func (r *rig) cut(h *lab.Host) (heal func()) {
	r.Helper()
	return r.shut(h, func(conn *nftables.Conn, table *nftables.Table) {
		for _, c := range []struct {
			name   string
			hook   *nftables.ChainHook
			offset uint32 // of the coordinator's port in the TCP header
		}{{"out", nftables.ChainHookOutput, 2}, {"in", nftables.ChainHookInput, 0}} {
			chain := conn.AddChain(&nftables.Chain{Name: c.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: nftables.ChainPriorityFilter})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: c.offset, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(443)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
	})
}

// TestLockOfSomebodyOutOfReach locks a node that cannot be reached and keeps sending, while one of its peers cannot be
// reached either. It checks that the others refuse it at once, and that peer as soon as it is back, from then on even without
// a coordinator.
func TestLockOfSomebodyOutOfReach(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("bad", "ann@example.com", "web", "tag:web", "away", "tag:web")
	bad, web, away := nodes[0], nodes[1], nodes[2]
	toWeb := r.udpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	toAway := r.udpFlow(bad.Host, away.Host, netip.AddrPortFrom(away.v4, 80))
	tcpWeb := r.tcpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	r.arrives(toWeb, 20)
	r.arrives(toAway, 20)
	r.lives(tcpWeb, 20)
	r.cut(bad.Host)
	heal := r.cut(away.Host)

	var made lockJSON
	r.adminJSON(&made, "lock", "create", "--node", "bad")
	if made.Holders != 2 || made.Enforced != 1 || len(made.Laggards) != 1 || made.Laggards[0].Name != "away" || time.Until(made.Bound) < time.Hour {
		t.Errorf("%+v", made)
	}
	r.silent(toWeb)
	r.lives(r.tcpFlow(web.Host, away.Host, netip.AddrPortFrom(away.v4, 81)), 20)
	if st := bad.status(); st.State != "running" {
		t.Errorf("bad has heard of it: %+v", st)
	}
	r.arrives(toAway, 20) // the reported bound is for this peer

	// A restarted agent contacts the coordinator at once.
	heal()
	if err := away.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	away.start()
	away.awaitStatus("is back", func(st mesh.Status) bool { return st.Coordinator.Connected && len(st.Peers) == 1 })
	r.silent(toAway)

	if err := r.Serve.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := away.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	away.start()
	away.awaitStatus("comes up from its disk", func(st mesh.Status) bool { return st.State == "running" && len(st.Peers) == 1 })
	r.silent(toAway)
	r.silent(toWeb)
}
