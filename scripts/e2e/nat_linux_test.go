package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// field is a mesh whose members are behind all kinds of NATs. The coordinator with its relay is on the Internet.
type field struct {
	*rig
	nats    map[string]*lab.NAT
	members map[string]*member
}

// fieldNATs are the NATs of the field, each after the one that it is behind.
var fieldNATs = []struct {
	name, behind string
	cfg          lab.NATConfig
}{
	{"easy", "", lab.NATConfig{}},
	{"other", "", lab.NATConfig{}},
	{"hard", "", lab.NATConfig{Hard: true}},
	{"harder", "", lab.NATConfig{Hard: true}},
	{"blocked", "", lab.NATConfig{BlockUDP: true}},
	{"hotel", "", lab.NATConfig{BlockUDP: true, TCPPort: 443}},
	{"carrier", "", lab.NATConfig{}},
	{"home", "carrier", lab.NATConfig{}},
	{"six", "", lab.NATConfig{V6: true}},
	{"helpful", "", lab.NATConfig{Hard: true}}, // it opens ports on request
}

// fieldMembers are the members and where they are; the Internet itself has no name.
var fieldMembers = [][2]string{
	{"ann", "easy"},
	{"bea", "easy"},
	{"cem", "other"},
	{"dan", "hard"},
	{"eve", "harder"},
	{"fay", "blocked"},
	{"gus", "hotel"},
	{"hal", "home"},
	{"ida", "six"},
	{"jon", ""},
	{"kim", "helpful"},
}

func newField(t *testing.T) *field {
	t.Helper()
	f := &field{rig: emptyRig(t), nats: map[string]*lab.NAT{}, members: map[string]*member{}}
	v6 := netip.AddrPortFrom(f.VM.V6(), 443)
	f.startCoordinator("--url", "https://"+v6.String(), "--relay-address", f.VM.V4().String(), "--relay-address", f.VM.V6().String())
	f.apply(open)
	for _, n := range fieldNATs {
		lan := f.LAN
		if n.behind != "" {
			lan = f.nats[n.behind].Inside
		}
		nat, err := f.World.AddNAT(n.name, lan, n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.nats[n.name] = nat
	}
	router := labtest.Miniupnpd(t, f.nats["helpful"], "enable_natpmp=yes\nenable_upnp=no\n")
	if err := router.WaitFor(f.ctx, "istening "); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, m := range fieldMembers {
		lan := f.LAN
		if m[1] != "" {
			lan = f.nats[m[1]].Inside
		}
		h := labtest.Host(t, f.World, m[0], lan)
		if m[1] == "six" {
			f.onlyV6(h)
		}
		x := f.agentOn(h)
		f.members[m[0]] = x
		code := f.token("--tag", "tag:x")
		all.Go(func() {
			if _, err := x.Up(f.ctx, code); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, x := range f.members {
		st := x.status()
		x.id, x.v4, x.v6 = st.Node.ID, st.V4(), st.V6()
	}
	f.settle()
	return f
}

// onlyV6 removes a host's IPv4 address.
func (f *field) onlyV6(h *lab.Host) {
	f.Helper()
	link, err := h.Netlink().LinkByName("eth0")
	if err == nil {
		err = h.Netlink().AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: h.V4().AsSlice(), Mask: net.CIDRMask(24, 32)}})
	}
	if err != nil {
		f.Fatal(err)
	}
}

// way returns the peer entry for to in m's status, which says how m reaches it.
func (m *member) way(to *member) mesh.Peer {
	for _, p := range m.status().Peers {
		if p.ID == to.id {
			return p
		}
	}
	return mesh.Peer{}
}

// TestThroughNATs checks that members behind all kinds of NATs reach each other at once, and over the best possible path.
func TestThroughNATs(t *testing.T) {
	t.Parallel()
	f := newField(t)
	for _, m := range f.members {
		f.echo(m.Host, 7)
	}
	cases := []struct{ from, to, want string }{
		{"ann", "bea", "direct"}, // the same LAN
		{"ann", "cem", "direct"}, // easy and easy
		{"ann", "jon", "direct"},
		{"dan", "jon", "direct"},  // hard and none
		{"hal", "cem", "direct"},  // a carrier's NAT and an easy one
		{"ann", "dan", "punched"}, // easy and hard: the port is guessed
		{"dan", "eve", "relay"},   // hard and hard
		{"dan", "kim", "direct"},  // the same, but one has a port that its router opened
		{"ann", "fay", "relay"},
		{"fay", "gus", "relay"},
		{"gus", "jon", "relay"},
		{"ida", "jon", "direct"}, // IPv6
		{"ida", "ann", "relay"},  // no address family in common
	}
	var report sync.Map
	var all sync.WaitGroup
	for _, c := range cases {
		all.Go(func() {
			from, to := f.members[c.from], f.members[c.to]
			begun := time.Now()
			for {
				ctx, cancel := context.WithTimeout(f.ctx, time.Second)
				err := from.Host.TryUDP(ctx, netip.AddrPortFrom(to.v4, 7))
				cancel()
				if err == nil {
					break
				}
				if time.Since(begun) > patience {
					t.Errorf("%s does not reach %s: %v", c.from, c.to, err)
					return
				}
			}
			first := time.Since(begun)
			limit := patience
			if c.want == "punched" {
				limit *= 5 // one punch in fifty misses, and is retried a minute later
			}
			f.awaitWithin(limit, 50*time.Millisecond, c.from+" reaches "+c.to+" "+c.want, func() error {
				if err := from.Host.TryUDP(f.ctx, netip.AddrPortFrom(to.v4, 7)); err != nil {
					return err
				}
				p := from.way(to)
				if p.Path != c.want && p.Transport != c.want {
					return fmt.Errorf("its way is %q by %s", p.Path, p.Endpoint)
				}
				report.Store(c.from+" "+c.to, fmt.Sprintf("first answer after %d ms, %s after %d ms", first.Milliseconds(), p.Path, time.Since(begun).Milliseconds()))
				return nil
			})
		})
	}
	all.Wait()
	for _, c := range cases {
		said, _ := report.Load(c.from + " " + c.to)
		t.Logf("%s to %s: %v", c.from, c.to, said)
	}
	f.netchecks()
	f.parts()
	f.reboot()
	f.roams()
}

// netchecks compares the output of `redoubt netcheck` with the actual networks.
func (f *field) netchecks() {
	f.Helper()
	var all sync.WaitGroup
	for who, want := range map[string]string{"ann": "nat", "fay": "blocked", "jon": "open"} {
		all.Go(func() {
			res, err := f.members[who].Exec(f.ctx, lab.Command{Args: []string{"netcheck", "--json"}})
			var got struct{ Kind string }
			if e := json.Unmarshal([]byte(res.Out), &got); err != nil || e != nil || got.Kind != want {
				f.Errorf("netcheck on %s: want %s: %v\n%s%s", who, want, errors.Join(err, e), res.Out, res.Err)
			}
		})
	}
	all.Wait()
}

// interruption runs a flow while something happens, and reports how long until packets arrive again, and how many were lost.
func (f *field) interruption(what string, from, to *member, port uint16, happen func() error) (lost uint64) {
	f.Helper()
	flow := f.udpFlow(from.Host, to.Host, netip.AddrPortFrom(to.v4, port))
	f.await("the flow begins", func() error {
		if flow.got.Load() < 100 {
			return errors.New("it does not arrive")
		}
		return nil
	})
	if err := happen(); err != nil {
		f.Fatal(err)
	}
	at := flow.sent.Load()
	begun := time.Now()
	f.await(what+": the flow goes on", func() error {
		if flow.highest.Load() < at+20 {
			return errors.New("it is silent")
		}
		return nil
	})
	gap := time.Since(begun)
	after := flow.highest.Load()
	f.await("the flow is steady", func() error {
		if flow.highest.Load() < after+200 {
			return errors.New("it is silent")
		}
		return nil
	})
	flow.end()
	// Packets in flight may still arrive.
	for end := time.Now().Add(5 * time.Second); flow.highest.Load() < flow.sent.Load() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	lost = flow.sent.Load() - flow.got.Load()
	f.Logf("%s: goes on after %d ms, %d of %d packets lost", what, gap.Milliseconds(), lost, flow.sent.Load())
	return lost
}

// parts makes a router drop direct traffic between two members, and let it through again, during a flow.
func (f *field) parts() {
	f.Helper()
	ann, cem, router, other := f.members["ann"], f.members["cem"], f.nats["easy"], f.nats["other"].V4()
	becomes := func(want string) {
		f.Helper()
		f.await("ann reaches cem "+want, func() error {
			if err := ann.Host.TryUDP(f.ctx, netip.AddrPortFrom(cem.v4, 7)); err != nil {
				return err
			}
			if p := ann.way(cem); p.Path != want {
				return fmt.Errorf("its way is %q by %s", p.Path, p.Endpoint)
			}
			return nil
		})
	}
	var heal func()
	f.interruption("path cut", ann, cem, 5005, func() error {
		heal = f.shut(router.Host, func(conn *nftables.Conn, table *nftables.Table) {
			chain := conn.AddChain(&nftables.Chain{
				Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			})
			for _, offset := range []uint32{12, 16} { // the source, the destination
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: other.AsSlice()},
					&expr.Verdict{Kind: expr.VerdictDrop},
				}})
			}
		})
		return nil
	})
	becomes("relay")
	lost := f.interruption("path healed", ann, cem, 5006, func() error {
		heal()
		becomes("direct")
		return nil
	})
	if lost > 0 {
		f.Errorf("%d packets are lost where the way is direct again", lost)
	}
}

// reboot makes a NAT lose its mappings during a flow.
func (f *field) reboot() {
	f.Helper()
	f.interruption("NAT rebooted", f.members["ann"], f.members["cem"], 5001, f.nats["easy"].Reboot)
	f.interruption("NAT of the receiver rebooted", f.members["cem"], f.members["ann"], 5002, f.nats["easy"].Reboot)
}

// roams gives a member another address during a flow.
func (f *field) roams() {
	f.Helper()
	ann := f.members["ann"]
	f.interruption("sender has another address", ann, f.members["cem"], 5003, func() error { return ann.Host.Ports[0].Renumber(77) })
	f.interruption("receiver has another address", f.members["cem"], ann, 5004, func() error { return ann.Host.Ports[0].Renumber(78) })
}
