package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// uapi queries an agent's socket for wg, in its text protocol.
func (r *rig) uapi(m *member, question string) map[string][]string {
	r.Helper()
	c, err := (&net.Dialer{}).DialContext(r.ctx, "unix", filepath.Join(m.Host.RunDir, "wireguard", "redoubt0.sock"))
	if err != nil {
		r.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		r.Fatal(err)
	}
	if _, err := io.WriteString(c, question); err != nil {
		r.Fatal(err)
	}
	got := map[string][]string{}
	var all strings.Builder
	for sc := bufio.NewScanner(c); sc.Scan(); {
		fmt.Fprintln(&all, sc.Text())
		key, value, ok := strings.Cut(sc.Text(), "=")
		if !ok {
			break // an empty line ends a response
		}
		got[key] = append(got[key], value)
	}
	r.hear("UAPI of "+m.Name, all.String())
	return got
}

// TestCountersForWireGuardTools checks that wg and wgctrl see counters but no secrets, and can change nothing.
func TestCountersForWireGuardTools(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b", "c", "tag:c")
	a, b := nodes[0], nodes[1]
	a.do("ping", "b", "-c", "1")

	got := r.uapi(a, "get=1\n\n")
	if fmt.Sprint(got["errno"]) != "[0]" || len(got["public_key"]) != 2 || len(got["listen_port"]) != 1 || len(got["rx_bytes"]) != 2 {
		t.Errorf("get: %v", got)
	}
	for _, name := range []string{"private_key", "preshared_key"} {
		if _, ok := got[name]; ok {
			t.Errorf("get tells %s", name)
		}
	}
	for _, address := range []string{b.v4.String() + "/32", b.v6.String() + "/128"} {
		if !slices.Contains(got["allowed_ip"], address) {
			t.Errorf("get: no peer with %s: %v", address, got["allowed_ip"])
		}
	}
	for _, set := range []string{
		"set=1\nreplace_peers=true\n\n",
		"set=1\npublic_key=" + got["public_key"][0] + "\nremove=true\n\n",
		"set=1\nlisten_port=1\n\n",
		"set=1\nprivate_key=" + strings.Repeat("11", 32) + "\n\n",
	} {
		if answer := r.uapi(a, set); len(answer["errno"]) == 1 && answer["errno"][0] == "0" {
			t.Errorf("%q was done", set)
		}
	}
	after := r.uapi(a, "get=1\n\n")
	// The engine lists its peers in any order.
	slices.Sort(after["public_key"])
	slices.Sort(got["public_key"])
	if !slices.Equal(after["public_key"], got["public_key"]) || !slices.Equal(after["listen_port"], got["listen_port"]) {
		t.Errorf("something was changed: %v, before %v", after, got)
	}
	a.do("ping", "b", "-c", "1")

	told := a.do("status", "--interface", "redoubt0")
	r.contains(told, "redoubt0", got["listen_port"][0])
	// Of the paths to b, the first that answers is used.
	if !strings.Contains(told, b.Host.V4().String()) && !strings.Contains(told, b.Host.V6().String()) {
		t.Errorf("it does not say where b is:\n%s", told)
	}
	var wg struct {
		Name       string
		ListenPort int
		Peers      []struct{ PublicKey, Endpoint string }
	}
	if err := json.Unmarshal([]byte(a.do("status", "--interface", "redoubt0", "--json")), &wg); err != nil {
		t.Fatal(err)
	}
	if wg.Name != "redoubt0" || fmt.Sprint(wg.ListenPort) != got["listen_port"][0] || len(wg.Peers) != 2 {
		t.Errorf("status --interface: %+v", wg)
	}
	r.contains(a.fails(exitFalse, "status", "--interface", "wg9"), "wg9")
	if _, err := exec.LookPath("wg"); err == nil {
		shown, err := a.Host.Run(r.ctx, lab.Command{Path: "wg", Args: []string{"show", "redoubt0"}})
		if err != nil {
			t.Fatal(err)
		}
		r.contains(shown, "interface: redoubt0", "latest handshake", b.v4.String()+"/32")
		r.hear("wg", shown)
	}
}

// TestMetrics fetches the metrics of both programs, which only the machine itself can read unless configured otherwise.
func TestMetrics(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--metrics", "9100")
	r.apply(open)
	a := r.machine("a", "--metrics", "9101")
	a.join(r.token("--user", "ann@example.com"))
	b := r.join("b", "--tag", "tag:b")
	r.settle()
	a.do("ping", "b", "-c", "1")
	r.apply(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:22"]}]}`)
	if _, err := a.Host.Dial(r.ctx, "tcp", netip.AddrPortFrom(b.v4, 23).String()); err == nil {
		t.Error("a reaches a port that no rule names")
	}
	for _, c := range []struct {
		host  *lab.Host
		port  uint16
		names []string
	}{
		{r.VM, 9100, []string{"redoubt_coordinator_", "process_resident_memory_bytes", "go_goroutines"}},
		{a.Host, 9101, []string{
			"redoubt_agent_", "process_resident_memory_bytes", "go_goroutines", "redoubt_agent_node_keys 1\n",
			`redoubt_agent_wireguard_dropped_total{reason="replay"} `, `redoubt_agent_peer_sessions{peer="b"} `,
			`redoubt_agent_peer_handshakes_total{peer="b"} `, `redoubt_agent_peer_bytes_total{direction="out",peer="b"}`,
			`redoubt_agent_peer_session_since_seconds{peer="b"}`, `redoubt_agent_peer_key_since_seconds{peer="b"}`,
			`redoubt_agent_peer_path_mtu_bytes{path="direct",peer="b"} 1420`,
			`redoubt_agent_peer_packets_dropped_total{peer="b",reason="no rule names this protocol and port"} `,
		}},
	} {
		text, err := r.get(c.host, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.port))
		if err != nil {
			t.Error(err)
			continue
		}
		r.contains(text, c.names...)
		r.hear("metrics of "+c.host.Name, text)
		if _, err := r.get(r.members[1].Host, netip.AddrPortFrom(c.host.V4(), c.port)); err == nil {
			t.Errorf("the metrics of %s are for everybody", c.host.Name)
		}
	}
	if _, err := b.Host.Dial(r.ctx, "tcp", "127.0.0.1:9101"); err == nil {
		t.Error("b serves metrics, and nobody asked it to")
	}
}

// get fetches metrics from within a host.
func (r *rig) get(h *lab.Host, at netip.AddrPort) (string, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) { return h.Dial(ctx, network, addr) }}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(r.ctx, http.MethodGet, "http://"+at.String()+"/metrics", nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(text), err
}

// TestUnits lets systemd check the units, installed below another root.
func TestUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		const how = "left out: %s: there is no systemd-analyze here (apt-get install systemd)"
		if os.Getenv("REDOUBT_REQUIRE_ROOT") == "1" {
			t.Fatalf(how, t.Name())
		}
		t.Skipf(how, t.Name())
	}
	root := t.TempDir()
	bin := filepath.Join(root, "usr", "local", "bin")
	units := filepath.Join(root, "etc", "systemd", "system")
	for _, dir := range []string{bin, units} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var paths []string
	for unit, program := range map[string]string{"redoubt.service": "redoubt", "redoubt-coordinator.service": "redoubt-coordinator"} {
		text, err := os.ReadFile(filepath.Join("..", "systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		installed := filepath.Join(bin, program)
		if n := bytes.Count(text, []byte("ExecStart=/usr/local/bin/"+program+" ")); n != 1 {
			t.Errorf("%s starts %s %d times", unit, program, n)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/"+program), []byte(installed))
		paths = append(paths, filepath.Join(units, unit))
		if err := errors.Join(os.WriteFile(installed, []byte("#!/bin/sh\n"), 0o755), os.WriteFile(filepath.Join(units, unit), text, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), analyze, append([]string{"verify", "--man=no"}, paths...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "redoubt") {
			t.Errorf("systemd says: %s", line)
		}
	}
}

// listenNotify returns the socket where a program reports its state to systemd.
func listenNotify(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// told waits until systemd would have received a message.
func told(t *testing.T, c *net.UnixConn, what string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	for {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("systemd is not told %s: %v", what, err)
		}
		if string(buf[:n]) == what {
			return
		}
	}
}

// TestSystemdIsTold runs both programs as systemd does, and checks that they report that they are ready, alive and stopping.
func TestSystemdIsTold(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	h, err := r.World.AddHost("m", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host *lab.Host
		args []string
	}{
		{r.VM, []string{"redoubt-coordinator", "serve", "--data", r.Data(), "--url", r.URL()}},
		{h, []string{"redoubt", "agent", "--state", r.NodeOn(h).State()}},
	} {
		// The socket is in /run, where the process sees it under a different path than this test.
		systemd := listenNotify(t, filepath.Join(c.host.RunDir, "notify"))
		p, err := c.host.Start(lab.Command{
			Name: c.args[0], Path: r.Program(c.args[0]), Args: c.args[1:], Env: []string{"NOTIFY_SOCKET=/run/notify", "WATCHDOG_USEC=300000"},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.processes = append(r.processes, p)
		told(t, systemd, "READY=1")
		told(t, systemd, "WATCHDOG=1")
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		told(t, systemd, "STOPPING=1")
		if err := p.Wait(r.ctx); err != nil {
			t.Error(err)
		}
	}
}

// TestSettings configures both programs with a file and with environment variables.
func TestSettings(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	write := func(name, text string) string {
		path := filepath.Join(r.World.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r.startCoordinator("--config", write("coordinator.hujson", `{
  // A smaller mesh than usual.
  "range": "100.99.1.0/24", "domain": "lab.example",
  "cert-lifetime": "30m",
}`))
	a := r.machine("a", "--config", write("agent.hujson", `{"tun": "wg-a", "listen-port": 4501}`))
	a.join(r.token("--user", "ann@example.com"))
	st := a.status()
	if !netip.MustParsePrefix("100.99.1.0/24").Contains(st.V4()) || time.Until(st.Node.CertificateExpires) > 31*time.Minute {
		t.Errorf("a is %+v", st.Node)
	}
	r.contains(a.do("status"), "a.lab.example", "wg-a, UDP port 4501")
	for text, says := range map[string]string{
		`{"tun": "wg-a", "no-such": 1}`:         ":1:17: unknown key",
		`{"listen-port": "many"}`:               ":1:2: ",
		`{"tun": "wg-a"`:                        ":1:15: ",
		`{"tun": "wg-a", "listen-port": 70000}`: "70000",
	} {
		said := a.fails(exitUsage, "agent", "--state", r.World.Dir+"/none", "--config", write("bad.hujson", text))
		r.contains(said, says, "bad.hujson")
		if _, err := os.Stat(r.World.Dir + "/none"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was touched: %v", text, err)
		}
	}
	res, _ := a.Exec(r.ctx, lab.Command{Args: []string{"status"}, Env: []string{"REDOUBT_WATCH=perhaps"}})
	if res.Code != exitUsage {
		t.Errorf("exit code %d", res.Code)
	}
	r.contains(res.Err, "REDOUBT_WATCH")
}
