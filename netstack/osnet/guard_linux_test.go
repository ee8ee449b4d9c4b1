package osnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// nftOf opens a guard in the host's namespace.
func nftOf(t *testing.T, h *lab.Host) *nft {
	t.Helper()
	var g guard
	err := h.Do(func() (err error) {
		g, err = newNFT()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.close(); err != nil {
			t.Error(err)
		}
	})
	return g.(*nft)
}

// generation returns the number of changes to nftables in the host's namespace.
func generation(t *testing.T, h *lab.Host) (n uint32) {
	t.Helper()
	err := h.Do(func() error {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		answers, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
			Data:   make([]byte, 4),
		})
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		attributes, err := netlink.NewAttributeDecoder(answers[0].Data[4:])
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		attributes.ByteOrder = binary.BigEndian
		for attributes.Next() {
			if attributes.Type() == unix.NFTA_GEN_ID {
				n = attributes.Uint32()
			}
		}
		return errors.Join(attributes.Err(), conn.Close())
	})
	if err != nil || n == 0 {
		t.Fatalf("generation %d of nftables: %v", n, err)
	}
	return n
}

// stray sends requests to the kernel and leaves the answers in the socket, as failed operations do: two errors and a whole dump.
func (g *nft) stray(t *testing.T) {
	t.Helper()
	question := func(kind uint16, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
			Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, data...),
		}
	}
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte("nobody's\x00")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []netlink.Message{
		question(unix.NFT_MSG_GETTABLE, netlink.Acknowledge, name),
		question(unix.NFT_MSG_GETTABLE, netlink.Acknowledge, name),
		question(unix.NFT_MSG_GETRULE, netlink.Dump, nil),
	} {
		if _, err := g.socket.Send(m); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStrayAnswersMisleadNobody checks that no operation takes answers left in the socket for its own.
func TestStrayAnswersMisleadNobody(t *testing.T) {
	h, _ := oneHost(t)
	g := nftOf(t, h)
	one, two := instanceOf(configA()), instanceOf(configA())
	two.device = "redoubt1"
	is := func(want ...instance) {
		t.Helper()
		g.stray(t)
		got, err := g.list()
		if err != nil || len(got) != len(want) {
			t.Fatalf("listed %v, %v; want %v", got, err, want)
		}
		for n := range got {
			if got[n] != want[n] {
				t.Errorf("listed %v, want %v", got[n], want[n])
			}
		}
	}
	isWhole := func(i instance, want bool) {
		t.Helper()
		g.stray(t)
		if got, err := g.whole(i, duty{}); err != nil || got != want {
			t.Errorf("%s is whole: %v, %v; want %v", i.device, got, err, want)
		}
	}
	is()
	for _, i := range []instance{one, two} {
		isWhole(i, false)
		g.stray(t)
		if err := g.set(i, duty{}); err != nil {
			t.Fatal(err)
		}
		isWhole(i, true)
	}
	is(one, two)
	g.stray(t)
	if err := g.remove(one.device); err != nil {
		t.Fatal(err)
	}
	is(two)
	isWhole(one, false)
	isWhole(two, true)
}

// TestARefusedTransactionMisleadsNobody checks that operations still work after the kernel rejected one of many messages.
func TestARefusedTransactionMisleadsNobody(t *testing.T) {
	h, _ := oneHost(t)
	g := nftOf(t, h)
	i := instanceOf(configA())
	for range 3 {
		g.conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "nobody's"})
		g.replace(inetContent(i, duty{}))
		if err := g.ask("set a table", g.conn.Flush); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("a transaction that cannot be: %v", err)
		}
		if got, err := g.list(); err != nil || len(got) != 0 {
			t.Errorf("listed %v, %v", got, err)
		}
	}
}

// TestGuardWithoutARP checks that a kernel without nftables for ARP gets the guard for IP packets, which then counts as whole.
func TestGuardWithoutARP(t *testing.T) {
	h, _ := oneHost(t)
	g := nftOf(t, h)
	i := instanceOf(configA())
	isWhole := func(want bool) {
		t.Helper()
		if got, err := g.whole(i, duty{}); err != nil || got != want {
			t.Errorf("whole: %v, %v; want %v", got, err, want)
		}
	}
	// The kernel rejects a kind of chain that ARP does not have as it rejects ARP where it does not know that.
	real := arpChains
	t.Cleanup(func() { arpChains = real })
	arpChains = []chain{{name: "input", kind: nftables.ChainTypeRoute, at: nftables.ChainHookRef(0)}}
	if err := g.set(i, duty{}); err != nil {
		t.Fatal(err)
	}
	isWhole(true)
	if s := state(t, h); strings.Contains(s, fmt.Sprintf("table %d %s", nftables.TableFamilyARP, TablePrefix)) {
		t.Errorf("there is a table for ARP, so the test proves nothing:\n%s", s)
	}
	// Once the kernel knows ARP, the next guard includes it.
	arpChains = real
	if err := g.set(i, duty{}); err != nil {
		t.Fatal(err)
	}
	isWhole(true)
	g.conn.DelTable(arpTable(i.device))
	if err := g.ask("remove the table", g.conn.Flush); err != nil {
		t.Fatal(err)
	}
	isWhole(false)
}

// TestGuardIsAskedByMany checks concurrent use: the keeper and callers of Clashes share one socket.
func TestGuardIsAskedByMany(t *testing.T) {
	h, _ := oneHost(t)
	g := nftOf(t, h)
	mine, other := instanceOf(configA()), instanceOf(configA())
	other.device = "redoubt1"
	if err := g.set(mine, duty{}); err != nil {
		t.Fatal(err)
	}
	const turns = 50
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range turns {
				if got, err := g.list(); err != nil || len(got) == 0 || got[0] != mine {
					t.Errorf("listed %v, %v", got, err)
					return
				}
				if ok, err := g.whole(mine, duty{}); err != nil || !ok {
					t.Errorf("whole: %v, %v", ok, err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range turns {
			if err := errors.Join(g.set(other, duty{}), g.remove(other.device)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Wait()
}

// TestClosedGuardAsksNobody checks that a closed guard fails, rather than talk to another network namespace.
func TestClosedGuardAsksNobody(t *testing.T) {
	h, _ := oneHost(t)
	g := nftOf(t, h)
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	if got, err := g.list(); !errors.Is(err, errClosed) {
		t.Errorf("listed %v, %v", got, err)
	}
	if err := g.set(instanceOf(configA()), duty{}); !errors.Is(err, errClosed) {
		t.Errorf("set: %v", err)
	}
}

// plainGuard acts like a kernel without nft_masq, nft_ct and nft_exthdr.
type plainGuard struct{ guard }

func (g plainGuard) set(i instance, d duty) error {
	if len(d.serve) > 0 || d.mark {
		return guardError("set the guard", unix.ENOENT)
	}
	return g.guard.set(i, d)
}

// TestGuardWithoutAllItsDuties checks that a guard that the kernel supports only in part is not made again and again, and that it
// gets its duties once the kernel supports them.
func TestGuardWithoutAllItsDuties(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	real := n.guard
	n.guard = plainGuard{real}
	if err := h.Do(func() error { return n.Up(beyondA()) }); err != nil {
		t.Fatal(err)
	}
	made := generation(t, h)
	for range 2 {
		if !n.keep() {
			t.Fatal("the guard is not kept")
		}
		if err := problem(n, "nft_masq")(); err != nil {
			t.Error(err)
		}
		if again := generation(t, h); again != made {
			t.Fatalf("the guard was made again: generation %d, then %d", made, again)
		}
	}
	n.mu.Lock()
	n.guard = real
	n.mu.Unlock()
	up(t, h, n, beyondA())
	if generation(t, h) == made {
		t.Error("the guard did not get its duties")
	}
}
