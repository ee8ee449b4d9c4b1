package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// network returns the configuration of a host's network.
func (r *rig) network(h *lab.Host) string {
	r.Helper()
	s, err := h.NetworkState()
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// same waits until a host's network is as before; the kernel takes a moment for some of it.
func (r *rig) same(what, before string, h *lab.Host) {
	r.Helper()
	var differs []string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		after := r.network(h)
		if after == before {
			return
		}
		if time.Now().After(end) {
			b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
			for _, line := range b {
				if !slices.Contains(a, line) {
					differs = append(differs, "gone: "+line)
				}
			}
			for _, line := range a {
				if !slices.Contains(b, line) {
					differs = append(differs, "new:  "+line)
				}
			}
			break
		}
	}
	r.Errorf("%s: the network of %s is another one:\n%s", what, h.Name, strings.Join(differs, "\n"))
}

// furnish gives a host some rules, routes and a firewall of its own.
func furnish(r *rig, h *lab.Host) {
	r.Helper()
	eth0, err := h.Netlink().LinkByName("eth0")
	if err != nil {
		r.Fatal(err)
	}
	elsewhere := &net.IPNet{IP: net.IPv4(198, 51, 100, 0).To4(), Mask: net.CIDRMask(24, 32)}
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Dst = 5000, 100, elsewhere
	err = errors.Join(
		h.Netlink().RuleAdd(rule),
		h.Netlink().RouteAdd(&netlink.Route{Dst: elsewhere, LinkIndex: eth0.Attrs().Index, Table: 100}),
		h.Netlink().RouteAdd(&netlink.Route{Dst: elsewhere, Type: unix.RTN_UNREACHABLE}),
		h.Do(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "filter"})
			chain := conn.AddChain(&nftables.Chain{
				Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
			})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
			return conn.Flush()
		}))
	if err != nil {
		r.Fatal(err)
	}
}

// moveAway moves the coordinator's data away, and keysBack moves the keys back.
func (r *rig) moveAway() error { return os.Rename(r.Data(), r.Data()+".lost") }

func (r *rig) keysBack() error {
	return os.Rename(filepath.Join(r.Data()+".lost", "pki"), filepath.Join(r.Data(), "pki"))
}

// TestClashesAreNamed joins from a host that already uses addresses of the mesh's range.
func TestClashesAreNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--range", "100.90.0.0/16")
	r.apply(open)
	b := r.join("b", "--tag", "tag:b")
	provider, err := r.World.LAN("provider")
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.World.AddHost("m", r.LAN, provider)
	if err != nil {
		t.Fatal(err)
	}
	used := netip.MustParsePrefix("100.90.3.1/24")
	eth1, err := h.Netlink().LinkByName("eth1")
	if err == nil {
		err = h.Netlink().AddrAdd(eth1, &netlink.Addr{IPNet: &net.IPNet{IP: used.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	m := r.agentOn(h)
	before := r.network(m.Host)
	res, err := m.Exec(r.ctx, lab.Command{Args: []string{"up", r.token("--user", "ann@example.com"), "--hostname", "m"}})
	if err != nil {
		t.Fatal(err)
	}
	r.contains(res.Err, "note: ", "eth1", used.String(), "100.90.0.0/16")
	r.contains(strings.Join(m.status().Problems, "\n"), "eth1", used.String())
	r.contains(m.do("status"), "problems", "eth1")
	r.narrow(m.do("status"))
	r.await("the mesh works all the same", func() error {
		_, err := m.Host.Ping(r.ctx, b.v4)
		return err
	})
	m.do("down")
	r.same("down", before, m.Host)
}

// TestOwnNames runs an agent with other names for everything that it creates.
func TestOwnNames(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	b := r.join("b", "--tag", "tag:b")
	h, err := r.World.AddHost("m", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	before := r.network(h)
	state := filepath.Join(r.World.Dir, "files", "elsewhere")
	socket := "/run/elsewhere/sock"
	p, err := h.Start(lab.Command{
		Name: "agent", Path: r.Program("redoubt"),
		Args: []string{"agent", "--state", state, "--socket", socket, "--tun", "mesh7", "--listen-port", "4500", "--tpm", "off"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.processes = append(r.processes, p)
	n := r.NodeOn(h)
	r.await("the agent answers", func() error {
		res, _ := n.Exec(r.ctx, lab.Command{Args: []string{"status", "--socket", socket}})
		if res.Code != exitFalse {
			return errors.New(res.Err)
		}
		return nil
	})
	run := func(args ...string) string {
		res, err := n.Exec(r.ctx, lab.Command{Args: args, Env: []string{"REDOUBT_SOCKET=" + socket}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Out
	}
	run("up", r.token("--user", "ann@example.com"))
	r.contains(run("status"), "mesh7, UDP port 4500")
	r.contains(run("ping", "b", "-c", "1"), "1 answered")
	if _, err := h.Netlink().LinkByName("mesh7"); err != nil {
		t.Error(err)
	}
	b.awaitStatus("hears m at its port", func(s mesh.Status) bool {
		return len(s.Peers) == 1 && (s.Peers[0].Endpoint == netip.AddrPortFrom(h.V4(), 4500).String() ||
			s.Peers[0].Endpoint == netip.AddrPortFrom(h.V6(), 4500).String())
	})
	for path, mode := range map[string]os.FileMode{
		state: 0o700, filepath.Join(state, "device.key"): 0o600, filepath.Join(state, "node.key"): 0o600, filepath.Join(r.Data(), "pki", "root.key"): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, info.Mode().Perm(), err, mode)
		}
	}
	if err := p.Stop(r.ctx); err != nil {
		t.Error(err)
	}
	r.same("stopped", before, h)
	if left, err := filepath.Glob(filepath.Join(h.RunDir, "*", "*.sock")); err != nil || len(left) > 0 {
		t.Error(fmt.Errorf("sockets that are left: %v %w", left, err))
	}
}

// TestWhatIsMissing uses a host on which the data path cannot run, and checks that the reason is reported, and that it runs
// as soon as it can.
func TestWhatIsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	b := r.join("b", "--tag", "tag:b")

	h, err := r.World.AddHost("taken", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	other, err := h.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 4500))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	taken := r.agentOn(h, "--listen-port", "4500")
	before := r.network(h)
	code := r.token("--user", "ann@example.com")
	r.contains(taken.fails(exitFalse, "up", code, "--timeout", "10s"), "4500", "in use", "redoubt status")
	r.contains(taken.fails(exitFalse, "status"), "starting", "4500", "in use")
	if _, err := h.Ping(r.ctx, b.v4); err == nil {
		t.Error("it reaches b without a data path")
	}
	other.Close()
	taken.awaitState("running")
	r.await("it reaches b", func() error {
		_, err := h.Ping(r.ctx, b.v4)
		return err
	})
	taken.do("down")
	r.same("down", before, h)

	if h, err = r.World.AddHost("without", r.LAN); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(r.World.Dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Mounts = map[string]string{"/dev/net": empty}
	without := r.agentOn(h)
	before = r.network(h)
	r.contains(without.fails(exitFalse, "up", r.token("--user", "ann@example.com"), "--timeout", "10s"), "/dev/net/tun")
	without.do("down")
	r.same("down", before, h)
}

// TestDamagedState damages each of the agent's files, and checks that the agent names the file and does not start.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	m := r.join("m", "--user", "ann@example.com")
	r.join("b", "--tag", "tag:b")
	r.settle()
	if err := m.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	before := r.network(m.Host)
	for _, name := range []string{"device.key", "node.key", "join", "identity", "netmap", "floors", "wanted"} {
		path := filepath.Join(m.State(), name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for what, damaged := range map[string][]byte{"cut short": whole[:len(whole)-7], "empty": {}, "something else": []byte("something else\n")} {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := m.Host.Run(r.ctx, lab.Command{Path: r.Program("redoubt"), Args: []string{"agent", "--state", m.State(), "--tpm", "off"}})
			if err == nil {
				t.Fatalf("%s %s: the agent runs", name, what)
			}
			r.contains(err.Error(), path)
			if lines := strings.Count(err.Error(), "\n"); lines > 4 {
				t.Errorf("%s %s: %v", name, what, err)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.same("not started", before, m.Host)
	m.start()
	m.awaitState("running")
}
