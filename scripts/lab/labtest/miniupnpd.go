//go:build linux

package labtest

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// Miniupnpd turns a NAT into a router that opens ports, with the program that many routers use. protocols are lines of its
// configuration.
func Miniupnpd(t testing.TB, nat *lab.NAT, protocols string) *lab.Process {
	t.Helper()
	if _, err := exec.LookPath("miniupnpd"); err != nil {
		Installed(t, errors.New("there is no miniupnpd here (apt-get install --no-install-recommends miniupnpd)"))
	}
	if err := nat.AlsoAt(PublicAddr); err != nil {
		t.Fatal(err)
	}
	if err := nat.Do(func() error { return chains(nat.RoutesV6()) }); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	text := "ext_ifname=eth0\nlistening_ip=eth1\nport=5000\nuuid=d58c1bff-45a7-4aea-8965-729f082f78d4\nsystem_uptime=no\n" +
		"lease_file=" + filepath.Join(dir, "leases") + "\next_ip=" + PublicAddr.String() + "\n" +
		"allow 1024-65535 192.168.0.0/16 1024-65535\n" + protocols
	args := []string{"-d", "-f", conf, "-P", filepath.Join(dir, "pid")}
	if nat.RoutesV6() {
		text += "upnp_table_name=nat\nupnp_nat_table_name=filter\n" // where the NAT drops what it does not let in
	} else {
		args = append(args, "-4")
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := nat.Start(lab.Command{Path: "miniupnpd", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// PublicAddr is the outside address that such a router reports. Its real one is private, as all are here, and it would not
// open ports on that.
var PublicAddr = netip.MustParseAddr("45.67.89.10")

// chains creates the chains that miniupnpd adds rules to. Those for IPv6 are in the NAT's own table, before its rules.
func chains(v6 bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	if v6 {
		own := &nftables.Table{Name: "nat", Family: nftables.TableFamilyINet}
		opened := c.AddChain(&nftables.Chain{Name: "miniupnpd", Table: own})
		c.InsertRule(&nftables.Rule{
			Table: own, Chain: &nftables.Chain{Name: "forward", Table: own},
			Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: opened.Name}},
		})
	}
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyINet})
	c.AddChain(&nftables.Chain{Name: "miniupnpd", Table: table})
	c.AddChain(&nftables.Chain{
		Name: "prerouting_miniupnpd", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddChain(&nftables.Chain{Name: "postrouting_miniupnpd", Table: table})
	return c.Flush()
}
