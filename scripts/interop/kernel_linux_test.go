//go:build kernel

package interop

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// rekeyed is when a session must have been rekeyed: WireGuard does it after two minutes.
const rekeyed = 135 * time.Second

// TestKernel runs two of our engines and a virtual machine, whose kernel initiates to one and waits for the other. See
// scripts/interop/kernel, which builds the machine.
func TestKernel(t *testing.T) {
	labtest.Need(t)
	labtest.TUN(t)
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Minute)
	defer cancel()
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "lan")
	host := labtest.Host(t, w, "vm", lan)
	var ours [2]*own
	var theirs [2]end
	var secrets [2]key.NodePrivate
	psk := [32]byte{1, 2, 3, 31: 9}
	for i, name := range []string{"a", "c"} {
		ours[i] = startOwn(t, labtest.Host(t, w, name, lan), byte(1+2*i))
		theirs[i] = newEnd(host, byte(2+2*i))
		secrets[i] = newKey(t)
		theirs[i].public = secrets[i].Public()
	}
	var sinks [2]net.Listener
	for i, o := range ours {
		l, err := o.Listen(netip.AddrPortFrom(o.addrs.V4, 7001))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		sinks[i] = l
	}
	vm := boot(t, host, map[string]string{
		"private0": text(secrets[0]), "private1": text(secrets[1]), "psk1": base64.StdEncoding.EncodeToString(psk[:]),
		"peer0": ours[0].public.String(), "peer1": ours[1].public.String(), "at0": netip.AddrPortFrom(ours[0].V4(), port).String(),
	})
	ours[0].meet(t, &theirs[0], netip.AddrPort{}, [32]byte{})
	ours[1].meet(t, &theirs[1], netip.AddrPortFrom(host.V4(), port+1), psk)
	if err := vm.WaitFor(ctx, "guest: ready"); err != nil {
		t.Fatalf("the machine does not come up: %v\n%s", err, vm.Output())
	}
	t.Log("the machine is up")
	var both sync.WaitGroup
	for i := range ours {
		both.Go(func() {
			if err := converse(ctx, ours[i], &theirs[i], sinks[i]); err != nil {
				t.Errorf("wg%d: %v\n%s", i, err, vm.Output())
			}
		})
	}
	both.Wait()
	for i, o := range ours {
		if s := o.stats(t); s.Handshakes < 2 || time.Since(s.SessionSince) > rekeyed {
			t.Errorf("wg%d: the session was not renewed: %+v", i, s)
		}
		for _, a := range o.addrs.Slice() {
			if !strings.Contains(vm.Output(), "guest: pinged "+a.String()) {
				t.Errorf("the machine has not reached %s", a)
			}
		}
		t.Logf("wg%d: %+v", i, o.stats(t))
	}
}

func newKey(t *testing.T) key.NodePrivate {
	t.Helper()
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func text(k key.NodePrivate) string {
	secret := k.Expose()
	return base64.StdEncoding.EncodeToString(secret[:])
}

// boot starts the machine, with variables for its only program.
func boot(t *testing.T, host *lab.Host, vars map[string]string) *lab.Process {
	t.Helper()
	line := "console=ttyS0 quiet panic=-1"
	for name, value := range vars {
		line += " " + name + "=" + value
	}
	p, err := host.Start(lab.Command{
		Name: "qemu", Path: "qemu-system-x86_64",
		Args: []string{
			"-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio", "-net", "none",
			"-kernel", os.Getenv("REDOUBT_KERNEL"), "-initrd", os.Getenv("REDOUBT_INITRD"), "-append", line,
			"-netdev", fmt.Sprintf("user,id=n,hostfwd=udp::%d-:%d", port+1, port+1), "-device", "virtio-net-pci,netdev=n,romfile=",
			"-device", "virtio-rng-pci",
		},
	})
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

// converse sends both ways, with an echo request every second, until the session must have been rekeyed. None may be lost
// after the first reply.
func converse(ctx context.Context, us *own, them *end, sink net.Listener) error {
	for {
		if _, err := us.Ping(ctx, them.addrs.V4); err == nil {
			break
		} else if ctx.Err() != nil {
			return fmt.Errorf("%s is not reached: %w", them.addrs.V4, err)
		}
	}
	begun := time.Now()
	c, err := sink.Accept()
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != 1<<20 || c.Close() != nil {
		return fmt.Errorf("%d bytes came from %s: %w", n, them.addrs.V4, err)
	}
	for _, a := range them.addrs.Slice() {
		if err := echo(ctx, us, netip.AddrPortFrom(a, 7000)); err != nil {
			return err
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for time.Since(begun) < rekeyed {
		<-tick.C
		for _, a := range them.addrs.Slice() {
			if _, err := us.Ping(ctx, a); err != nil {
				return fmt.Errorf("%s after the first was answered: %w", time.Since(begun).Round(time.Second), err)
			}
		}
	}
	return nil
}

// echo checks that the machine sends back what it is sent.
func echo(ctx context.Context, us *own, at netip.AddrPort) error {
	c, err := us.Dial(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	const size = 1 << 18
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i>>8) ^ byte(i)
	}
	return swap(c, sent, sent)
}
