package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// patience is the timeout for what takes seconds when nothing is wrong. It is long, because the machine may be busy.
const patience = time.Minute

const port = 51820

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	if dir, err := stock(); err == nil {
		err = os.RemoveAll(dir)
		if err == nil && code == 0 {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// stock returns the directory with the module's unmodified wireguard-go.
var stock = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "redoubt-interop-")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "wireguard-go"), "golang.zx2c4.com/wireguard")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build wireguard-go: %w\n%s", err, out), os.RemoveAll(dir))
	}
	return dir, nil
})

// need skips or fails the test if something that it needs is missing.
func need(t testing.TB) (stockDir string) {
	t.Helper()
	labtest.Need(t)
	labtest.TUN(t)
	if _, err := exec.LookPath("wg"); err != nil {
		const how = "left out: %s: there is no wg here (apt-get install --no-install-recommends wireguard-tools)"
		if os.Getenv("REDOUBT_REQUIRE_ROOT") == "1" {
			t.Fatalf(how, t.Name())
		}
		t.Skipf(how, t.Name())
	}
	dir, err := stock()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// end is one of the two hosts that the tunnel connects. Overlay addresses are 10.200.0.N and fd20::N, N from 1.
type end struct {
	*lab.Host
	number byte
	addrs  proto.Addrs
	public key.NodePublic
}

func newEnd(host *lab.Host, number byte) end {
	return end{Host: host, number: number, addrs: proto.Addrs{
		V4: netip.AddrFrom4([4]byte{10, 200, 0, number}), V6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x20, 15: number}),
	}}
}

// own is the end with our engine, which runs in this process.
type own struct {
	end
	engine wg.Engine
	key    key.NodePrivate
}

// startOwn starts our engine as on Linux: with a device and sockets that move many packets per system call.
func startOwn(t testing.TB, host *lab.Host, number byte) *own {
	t.Helper()
	return startOn(t, host, number, tun.Open, nil)
}

// startOn starts our engine on another device and other sockets; nil means the system's.
func startOn(t testing.TB, host *lab.Host, number byte, open func(string, int) (tun.Device, error), inner conn.Bind) *own {
	t.Helper()
	o := &own{end: newEnd(host, number)}
	var err error
	if o.key, err = key.NewNode(rand.Reader); err != nil {
		t.Fatal(err)
	}
	o.public = o.key.Public()
	err = host.Do(func() error {
		d, err := open("own0", tun.DefaultMTU)
		if err != nil {
			return err
		}
		overlay := []netip.Prefix{netip.MustParsePrefix("10.200.0.0/24"), netip.MustParsePrefix("fd20::/64")}
		b := bind.New(bind.Config{Inner: inner, Bounds: path.Bounds{Overlay: overlay}})
		o.engine = wg.NewInline(1, d, b, slog.New(slog.DiscardHandler))
		return o.engine.Configure(o.key, port)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	o.up(t, "own0")
	return o
}

// up assigns the end's addresses to a device.
func (e *end) up(t testing.TB, device string) {
	t.Helper()
	rt := e.Netlink()
	link, err := rt.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(rt.LinkSetMTU(link, tun.DefaultMTU), rt.LinkSetUp(link))
	for _, a := range e.addrs.Slice() {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		n := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
		err = errors.Join(err, rt.AddrAdd(link, &netlink.Addr{IPNet: n, Flags: ifaNoDAD}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

const ifaNoDAD = 0x02

// meet adds the other end as a peer of our engine. Without an address, we wait for it to initiate.
func (o *own) meet(t testing.TB, other *end, at netip.AddrPort, psk [32]byte) {
	t.Helper()
	cfg := wg.PeerConfig{ID: 2, Keys: []key.NodePublic{other.public}, Addrs: other.addrs, PSK: psk}
	if at.IsValid() {
		cfg.Endpoints = []netip.AddrPort{at}
	}
	if err := o.engine.SetPeer(cfg); err != nil {
		t.Fatal(err)
	}
}

func (o *own) stats(t testing.TB) wg.PeerStats {
	t.Helper()
	s, err := o.engine.Peer(2)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// other is the end with wireguard-go.
type other struct {
	end
	process *lab.Process
	dir     string
	private string
}

func startOther(ctx context.Context, t testing.TB, dir string, host *lab.Host) *other {
	t.Helper()
	o := &other{end: newEnd(host, 2), dir: dir}
	o.start(ctx, t)
	o.private = strings.TrimSpace(o.wg(ctx, t, "", "genkey"))
	o.configure(ctx, t)
	o.public = parse(t, strings.TrimSpace(o.wg(ctx, t, o.private, "pubkey")))
	return o
}

func parse(t testing.TB, text string) key.NodePublic {
	t.Helper()
	k, err := key.ParseNodePublicText(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// start starts the program, and waits until wg can talk to it.
func (o *other) start(ctx context.Context, t testing.TB) {
	t.Helper()
	launch := func() (err error) {
		o.process, err = o.Start(lab.Command{
			Path: filepath.Join(o.dir, "wireguard-go"), Args: []string{"-f", "wg0"}, Env: []string{"LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1"},
		})
		return err
	}
	if err := launch(); err != nil {
		t.Fatal(err)
	}
	await(t, "wireguard-go", func() error {
		select {
		case <-o.process.Done(): // after a kill its device may stay busy for a moment
			if err := launch(); err != nil {
				return err
			}
		default:
		}
		if _, err := o.Run(ctx, lab.Command{Path: "wg", Args: []string{"show", "wg0"}}); err != nil {
			return fmt.Errorf("%w\n%s", err, o.process.Output())
		}
		return nil
	})
	o.up(t, "wg0")
}

func (o *other) configure(ctx context.Context, t testing.TB) {
	t.Helper()
	o.wg(ctx, t, o.private, "set", "wg0", "private-key", "/dev/stdin", "listen-port", fmt.Sprint(port))
}

// wg runs wg with a text as its standard input.
func (o *other) wg(ctx context.Context, t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := o.Run(ctx, lab.Command{Path: "wg", Args: args, Stdin: strings.NewReader(stdin)})
	if err != nil {
		t.Fatalf("wg %s: %v\n%s", strings.Join(args, " "), err, o.process.Output())
	}
	return out
}

// meet adds our end as a peer of wireguard-go. Without an address, it waits for us to initiate.
func (o *other) meet(ctx context.Context, t testing.TB, us *own, at netip.AddrPort, psk [32]byte) {
	t.Helper()
	args := []string{"set", "wg0", "peer", us.public.String(), "allowed-ips", us.addrs.V4.String() + "/32," + us.addrs.V6.String() + "/128"}
	if at.IsValid() {
		args = append(args, "endpoint", at.String())
	}
	if psk != [32]byte{} {
		args = append(args, "preshared-key", "/dev/stdin")
	}
	o.wg(ctx, t, base64.StdEncoding.EncodeToString(psk[:]), args...)
}

// shown returns a value of `wg show wg0 WHAT` for our end.
func (o *other) shown(ctx context.Context, t testing.TB, what string) string {
	t.Helper()
	_, value, _ := strings.Cut(strings.TrimSpace(o.wg(ctx, t, "", "show", "wg0", what)), "\t")
	return value
}

// await repeats f until it returns no error.
func await(t testing.TB, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// reaches checks that an echo request from one end to the other is answered, over IPv4 and IPv6, at once or after the
// handshake was repeated.
func reaches(ctx context.Context, t testing.TB, from, to *end) {
	t.Helper()
	for _, a := range to.addrs.Slice() {
		await(t, fmt.Sprintf("ping %s from %s", a, from.Name), func() error {
			_, err := from.Ping(ctx, a)
			return err
		})
	}
}

// bulk is how much transfer sends each way.
const bulk = 4 << 20

// transfer sends bytes over TCP in both directions at the same time, and compares them.
func transfer(ctx context.Context, t testing.TB, from, to *end) {
	t.Helper()
	for _, a := range to.addrs.Slice() {
		if err := exchange(ctx, from, to, a); err != nil {
			t.Fatalf("from %s to %s: %v", from.Name, a, err)
		}
	}
}

func exchange(ctx context.Context, from, to *end, at netip.Addr) error {
	l, err := to.Listen(netip.AddrPortFrom(at, 7000))
	if err != nil {
		return err
	}
	defer l.Close()
	there, back := make([]byte, bulk), make([]byte, bulk)
	_, _ = rand.Read(there)
	_, _ = rand.Read(back)
	far := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = swap(c, back, there)
		}
		far <- err
	}()
	c, err := from.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	return errors.Join(swap(c, there, back), <-far)
}

// swap writes one thing while it reads another.
func swap(c net.Conn, write, want []byte) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(write)
		written <- err
	}()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("other bytes came than were sent")
	}
	return errors.Join(err, <-written)
}
