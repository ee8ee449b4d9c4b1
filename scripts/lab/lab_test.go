//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

func TestTrafficInAndBetweenLANs(t *testing.T) {
	w := labtest.World(t)
	near, far := labtest.LAN(t, w, "near"), labtest.LAN(t, w, "far")
	a, b, c := labtest.Host(t, w, "a", near), labtest.Host(t, w, "b", near), labtest.Host(t, w, "c", far)
	for _, server := range []*lab.Host{b, c} {
		for _, ip := range []netip.Addr{server.V4(), server.V6()} {
			addr := netip.AddrPortFrom(ip, 7)
			if err := server.Echo(addr); err != nil {
				t.Fatal(err)
			}
			if err := a.TryTCP(t.Context(), addr); err != nil {
				t.Errorf("TCP from a to %s: %v", server.Name, err)
			}
			if err := a.TryUDP(t.Context(), addr); err != nil {
				t.Errorf("UDP from a to %s: %v", server.Name, err)
			}
			if _, err := a.Ping(t.Context(), ip); err != nil {
				t.Errorf("ping from a to %s: %v", server.Name, err)
			}
		}
	}
}

func TestCutUnplugAndHeal(t *testing.T) {
	w := labtest.World(t)
	l := labtest.LAN(t, w, "lan")
	a, b := labtest.Host(t, w, "a", l), labtest.Host(t, w, "b", l)
	addr := netip.AddrPortFrom(b.V4(), 7)
	if err := b.Echo(addr); err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string]func() error{"cut": b.Ports[0].Cut, "unplug": b.Ports[0].Unplug} {
		if err := part(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := a.TryUDP(ctx, addr); err == nil {
			t.Errorf("%s: packets still arrive", name)
		}
		cancel()
		if err := b.Ports[0].Heal(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return a.TryUDP(t.Context(), addr) })
	}
	if err := b.Ports[0].Renumber(77); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { _, err := a.Ping(t.Context(), b.V4()); return err })
}

// eventually repeats f until it succeeds; bridges and carriers take a moment.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestProcesses(t *testing.T) {
	w := labtest.World(t)
	l := labtest.LAN(t, w, "lan")
	a, b := labtest.Host(t, w, "a", l), labtest.Host(t, w, "b", l)

	p, err := a.Start(lab.Command{Name: "writer", Path: "sh", Args: []string{
		"-c", "cat /proc/net/fib_trie; echo mine > /run/file; echo ready; sleep 1000",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitFor(t.Context(), "ready\n"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(p.Output(), a.V4().String()) {
		t.Errorf("the process does not see the host's network:\n%s", p.Output())
	}
	// Processes of the same host share its /run; those of another host and of the system do not.
	if out, err := a.Run(t.Context(), lab.Command{Path: "cat", Args: []string{"/run/file"}}); err != nil || out != "mine\n" {
		t.Errorf("the same host: %q, %v", out, err)
	}
	if out, err := b.Run(t.Context(), lab.Command{Path: "cat", Args: []string{"/run/file"}}); err == nil {
		t.Errorf("another host sees the file: %q", out)
	}
	if _, err := os.Stat("/run/file"); err == nil {
		t.Error("the system sees the file")
	}
	if _, err := os.Stat(filepath.Join(a.RunDir, "file")); err != nil {
		t.Errorf("the test does not see the file: %v", err)
	}
	if log, err := os.ReadFile(p.Log); err != nil || !bytes.HasSuffix(log, []byte("ready\n")) {
		t.Errorf("log file: %q, %v", log, err)
	}
	if err := p.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("stop: %v", err)
	}
	if err := p.WaitFor(t.Context(), "never"); err == nil {
		t.Error("waited for what an ended process never wrote")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Run(ctx, lab.Command{Path: "sleep", Args: []string{"1000"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that takes too long: %v", err)
	}
	if _, err := a.Start(lab.Command{Path: "no-such-program"}); err == nil {
		t.Error("started a program that does not exist")
	}
}

func TestHostsHaveNamesAndDirectoriesOfTheirOwn(t *testing.T) {
	w := labtest.World(t)
	l := labtest.LAN(t, w, "lan")
	for _, name := range []string{"a", "b"} {
		h := labtest.Host(t, w, name, l)
		dir := t.TempDir()
		h.Mounts = map[string]string{"/etc": dir}
		out, err := h.Run(t.Context(), lab.Command{Path: "sh", Args: []string{"-c", "cat /proc/sys/kernel/hostname; echo " + name + " >/etc/mine"}})
		if err != nil || out != name+"\n" {
			t.Errorf("%s calls itself %q: %v", name, out, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "mine")); err != nil || string(b) != name+"\n" {
			t.Errorf("%s wrote %q: %v", name, b, err)
		}
	}
	if _, err := os.Stat("/etc/mine"); err == nil {
		t.Error("a host wrote into this system's /etc")
	}
}

func TestProcessesOutliveTheThreadsThatComeAndGo(t *testing.T) {
	w := labtest.World(t)
	a := labtest.Host(t, w, "a")
	var all []*lab.Process
	for i := range 8 {
		p, err := a.Start(lab.Command{Name: strconv.Itoa(i), Path: "sleep", Args: []string{"1000"}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
		if err := a.Do(func() error { return nil }); err != nil { // a thread ends
			t.Fatal(err)
		}
	}
	for _, p := range all {
		if err := unix.Kill(p.PID(), 0); err != nil {
			t.Errorf("%s died: %v", p.Name, err)
		}
	}
}

func TestCaptureAndInject(t *testing.T) {
	w := labtest.World(t)
	l := labtest.LAN(t, w, "lan")
	a, b := labtest.Host(t, w, "a", l), labtest.Host(t, w, "b", l)
	wire, err := b.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	sock, err := b.ListenUDP(netip.AddrPortFrom(b.V4(), 9))
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	from := netip.MustParseAddrPort("10.99.1.222:1234") // unused on the LAN
	packet := lab.UDPPacket(from, netip.AddrPortFrom(b.V4(), 9), []byte("spoofed"))
	if err := a.Ports[0].Inject(b.Ports[0].MAC, packet); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if err := sock.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, who, err := sock.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "spoofed" || netip.AddrPortFrom(who.Addr().Unmap(), who.Port()) != from {
		t.Fatalf("received %q from %v: %v", buf[:n], who, err)
	}
	frames, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, f := range frames {
		if src, dst, ok := f.Addrs(); ok && src == from.Addr() && dst == b.V4() && f.From(a.Ports[0]) {
			seen = true
		}
	}
	if !seen {
		t.Errorf("the wire saw %d frames and not that one", len(frames))
	}
}

func TestPacketsAreWellFormed(t *testing.T) {
	// The kernel is the judge: it delivers and answers only packets with valid checksums.
	w := labtest.World(t)
	l := labtest.LAN(t, w, "lan")
	a, b := labtest.Host(t, w, "a", l), labtest.Host(t, w, "b", l)
	for _, ips := range [][2]netip.Addr{{a.V4(), b.V4()}, {a.V6(), b.V6()}} {
		if _, err := a.Ping(t.Context(), ips[1]); err != nil { // so that b learns a's Ethernet address
			t.Fatal(err)
		}
		src, dst := netip.AddrPortFrom(ips[0], 4000), netip.AddrPortFrom(ips[1], 4001)
		for name, packet := range map[string][]byte{
			"echo": lab.EchoPacket(ips[0], ips[1], 1, 2),
			"udp":  lab.UDPPacket(src, dst, []byte("nobody listens")),
			"tcp":  lab.TCPPacket(src, dst, lab.FlagSYN, 1, 0, nil),
		} {
			wire, err := b.Ports[0].CaptureWire()
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Ports[0].Inject(b.Ports[0].MAC, packet); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				for _, f := range wire.Frames() {
					if src, dst, ok := f.Addrs(); ok && f.From(b.Ports[0]) && src == ips[1] && dst == ips[0] {
						return nil
					}
				}
				return errors.New(name + ": no answer")
			})
			if _, err := wire.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestKilledWorldIsSweptAndItsProcessesDie(t *testing.T) {
	w := labtest.World(t)
	a := labtest.Host(t, w, "a")
	// Run this test again, in a separate process that creates a world with a process in it and never ends.
	p, err := a.Start(lab.Command{
		Name: "child", Path: "/proc/self/exe", Args: []string{"-test.run=^TestHelperWorld$"},
		Env: []string{"REDOUBT_LAB_CHILD=1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitFor(t.Context(), "\n"); err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(p.Output(), "\n")
	dir, pidText, _ := strings.Cut(line, " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		t.Fatalf("the child wrote %q", p.Output())
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		stat, err := os.ReadFile("/proc/" + pidText + "/stat")
		if err == nil && !bytes.Contains(stat, []byte(") Z ")) {
			return errors.New("process " + strconv.Itoa(pid) + " lives on")
		}
		return nil
	})
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the killed world's directory: %v", err)
	}
	other := labtest.World(t)
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s was not swept", dir)
	}
	for _, alive := range []*lab.World{w, other} {
		if _, err := os.Stat(alive.Dir); err != nil {
			t.Errorf("a living world was swept: %v", err)
		}
	}
}

// TestHelperWorld is the child of the test above; on its own it creates an empty world.
func TestHelperWorld(t *testing.T) {
	w := labtest.World(t)
	a := labtest.Host(t, w, "a")
	if os.Getenv("REDOUBT_LAB_CHILD") == "" {
		return
	}
	p, err := a.Start(lab.Command{Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString(w.Dir + " " + strconv.Itoa(p.PID()) + "\n")
	<-p.Done()
}

// TestEnterWithoutPrivileges runs a test where root lacks CAP_SYS_ADMIN, as in many containers: once with user namespaces
// allowed, and once without, which must be reported with the cause.
func TestEnterWithoutPrivileges(t *testing.T) {
	labtest.World(t)
	left := []string{"left out: TestHelperWorld", "user.max_user_namespaces is 0", "sudo"}
	for _, c := range []struct {
		allowed, require string
		want             []string
	}{
		{"100", "1", []string{"--- PASS: TestHelperWorld"}},
		{"0", "", append(left, "--- SKIP: TestHelperWorld")},
		{"0", "1", append(left, "--- FAIL: TestHelperWorld")},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHelperUnprivileged$", "-test.v")
		cmd.Env = append(os.Environ(), "REDOUBT_LAB_ALLOWED="+c.allowed, "REDOUBT_REQUIRE_ROOT="+c.require)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, text := range c.want {
			if !bytes.Contains(out, []byte(text)) {
				t.Errorf("with %s user namespaces and REDOUBT_REQUIRE_ROOT=%q the output has no %q:\n%s",
					c.allowed, c.require, text, out)
			}
		}
	}
}

// TestHelperUnprivileged is the child of the test above: it drops the right to create namespaces and runs another test.
func TestHelperUnprivileged(t *testing.T) {
	allowed := os.Getenv("REDOUBT_LAB_ALLOWED")
	if allowed == "" {
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte(allowed), 0o600); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // this thread starts the child, without its capability
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestHelperWorld$", "-test.v")
	for _, v := range os.Environ() {
		// In a test that was itself entered, the child must start afresh.
		if !strings.HasPrefix(v, "REDOUBT_LAB_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	out, _ := cmd.CombinedOutput() // the parent judges whether it failed
	os.Stdout.Write(out)
}
