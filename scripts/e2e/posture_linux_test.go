package e2e

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// walled is a policy that lets ann reach the web while her machine has a firewall.
const walled = `{
  "tagOwners": {"tag:web": []},
  "postures": {"posture:walled": ["posture:firewall == 'true'", "posture:kernelVersion IS SET"]},
  "grants": [
    {"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["tcp:80"], "srcPosture": ["posture:walled"]},
  ],
}`

// raise gives the machine a typical firewall: incoming packets that belong to no connection are dropped, except for the
// tunnel's own packets and those from the tunnel.
func (m *member) raise() {
	m.r.Helper()
	drop := nftables.ChainPolicyDrop
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "redoubt0")
	m.nftables(func(c *nftables.Conn) {
		table := c.AddTable(wall())
		chain := c.AddChain(&nftables.Chain{
			Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		accept := &expr.Verdict{Kind: expr.VerdictAccept}
		for _, exprs := range [][]expr.Any{
			{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte("lo\x00")}, accept},
			{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}, accept},
			{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_SCTP}}, accept},
		} {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	})
}

// raze removes it.
func (m *member) raze() {
	m.r.Helper()
	m.nftables(func(c *nftables.Conn) { c.DelTable(wall()) })
}

func wall() *nftables.Table { return &nftables.Table{Family: nftables.TableFamilyINet, Name: "wall"} }

func (m *member) nftables(change func(*nftables.Conn)) {
	m.r.Helper()
	if err := m.Host.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		change(c)
		return c.Flush()
	}); err != nil {
		m.r.Fatal(err)
	}
}

// TestFirewallOpensAndCloses uses a grant that depends on a machine's firewall, and removes the firewall while a connection
// is open.
func TestFirewallOpensAndCloses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	r.apply(walled)
	ann, web := nodes[0], nodes[1]
	to := netip.AddrPortFrom(web.v4, 80)

	var said struct {
		Facts []struct {
			Name   string
			Value  *string
			Note   string
			Blocks bool
		}
		Withheld []struct{ Rule string }
	}
	r.await("ann's machine is known to have no firewall", func() error {
		if err := json.Unmarshal([]byte(ann.fails(1, "posture", "--json")), &said); err != nil {
			return err
		}
		for _, f := range said.Facts {
			if f.Name == "posture:firewall" && f.Value != nil && *f.Value == "false" && f.Blocks && f.Note != "" &&
				len(said.Withheld) == 1 && said.Withheld[0].Rule == "grants[0]" {
				return nil
			}
		}
		return errors.New(ann.do("status"))
	})
	r.contains(ann.fails(1, "posture"), "grants[0] (line 5 of the policy) fails", "posture:firewall: turn on a firewall", "posture:kernelVersion")
	r.contains(ann.fails(1, "why", "web:80"), "grants[0]", "posture:firewall")
	r.contains(r.admin("node", "show", "ann"), "grants[0] (line 5 of the policy) fails", "posture:firewall: turn on a firewall")

	quickest := patience
	for range 2 {
		began := time.Now()
		ann.raise()
		flow := r.tcpFlow(ann.Host, web.Host, to)
		t.Logf("open %v after the firewall was there", time.Since(began).Round(time.Millisecond))
		r.lives(flow, 20)

		began = time.Now()
		ann.raze()
		r.reset(flow)
		took := time.Since(began)
		quickest = min(quickest, took)
		t.Logf("dead at both ends %v after the firewall was gone", took.Round(time.Millisecond))
	}
	// Only the quicker of the two counts, since the machine may be busy. Without change notifications the agent checks once a
	// minute.
	if quickest > 2*time.Second {
		t.Errorf("connections live for %v without the firewall that they need", quickest)
	}
	ann.raise()
	r.lives(r.tcpFlow(ann.Host, web.Host, to), 20)
	r.contains(ann.do("posture", "--refresh"), "no rule of the policy fails", "device:attestation")
	shown := r.admin("node", "show", "ann")
	if strings.Contains(shown, "of the policy) fails") {
		t.Errorf("every rule holds, and it is said of ann:\n%s", shown)
	}
	r.contains(shown, "posture:firewall", "posture:kernelVersion", "reported", "silence + 3 min")
	if out := web.do("status", "--json") + web.do("whois", ann.v4.String()); strings.Contains(out, "posture:") {
		t.Errorf("a peer was told of ann's machine: %s", out)
	}
}
