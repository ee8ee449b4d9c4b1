package osnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// guard keeps packets with overlay addresses off all other devices.
type guard interface {
	// list returns the instances with a guard in this network namespace.
	list() ([]instance, error)
	// whole reports whether the guard is exactly as set would make it.
	whole(instance, duty) (bool, error)
	// set creates or replaces the guard in one transaction: there is never a moment without one.
	set(instance, duty) error
	// notes returns the settings noted in the device's guard.
	notes(device string) ([]setting, error)
	// blocks returns the chains of others that drop forwarded packets by policy and have no rule for the device.
	blocks(device string) ([]string, error)
	// remove removes the guard of a device, if there is one.
	remove(device string) error
	close() error
}

// nft implements guard with nftables, with one table per instance:
//
//	table inet redoubt-redoubt0 {
//	  set overlay4 { type ipv4_addr; flags interval; elements = { 100.80.0.0/16 } }
//	  set overlay6 { type ipv6_addr; flags interval; elements = { fd12:3456:789a::/48 } }
//	  set served4, served6                                                       from duty.serve
//	  chain overlay {
//	    ip saddr @overlay4 counter drop
//	    ip daddr @overlay4 counter drop
//	    ip6 saddr @overlay6 counter drop
//	    ip6 daddr @overlay6 counter drop
//	  }
//	  chain prerouting  { ip saddr @served4 ip daddr @overlay4 return            hosts behind us may talk to the mesh
//	                      iifname != "redoubt0" iifname != "lo" jump overlay }   before defragmentation and translation
//	  chain input       { iifname != "redoubt0" iifname != "lo" jump overlay }   after translation
//	  chain forward     { iifname != "redoubt0" oifname != "redoubt0" jump overlay
//	                      iifname "redoubt0" oifname != "redoubt0" ip daddr @served4 return
//	                      oifname "redoubt0" iifname != "redoubt0" ip saddr @served4 return
//	                      iifname "redoubt0" drop
//	                      oifname "redoubt0" drop }
//	  chain output      { oifname != "redoubt0" oifname != "lo" jump overlay }   after translation of destinations
//	  chain postrouting { ip saddr @overlay4 ip daddr @served4 return            past output, so it was forwarded
//	                      oifname != "redoubt0" oifname != "lo" jump overlay }   before translation of sources
//	  chain leaving     { oifname != "redoubt0" oifname != "lo" jump overlay }   after translation of sources
//	}
//
// Rules with IPv4 addresses have IPv6 counterparts. See chainsOf for the chains that a duty adds.
//
// One more table, for ARP, keeps the host from telling the LAN that it has an overlay address:
//
//	table arp redoubt-redoubt0 {
//	  set overlay4 { ... }
//	  chain input  { arp saddr ip @overlay4 drop; arp daddr ip @overlay4 drop }
//	  chain output { the same }
//	}
type nft struct {
	// mu serializes exchanges with the kernel, one method at a time: conn does not keep concurrent callers from reading each
	// other's answers, and the keeper and callers of Clashes do share it.
	mu     sync.Mutex
	conn   *nftables.Conn
	socket *netlink.Conn // the socket of conn
	closed bool
	// noARP means that the kernel has no nftables for ARP, so that set leaves that table out.
	noARP bool
}

// answerTime bounds how long the kernel may take for one answer. It normally answers at once; the limit keeps a lost answer from
// blocking the keeper forever.
const answerTime = 10 * time.Second

const (
	set4    = "overlay4"
	set6    = "overlay6"
	served4 = "served4"
	served6 = "served6"
	drops   = "overlay"
	noted   = "before"
)

// arpChains are the chains of the table for ARP, which has its own hooks.
var arpChains = []chain{
	{name: "input", at: nftables.ChainHookRef(0), rules: arpRules()},
	{name: "output", at: nftables.ChainHookRef(1), rules: arpRules()},
}

// newNFT opens a socket in the network namespace of the calling thread; the socket stays there.
func newNFT() (guard, error) {
	g := &nft{}
	var err error
	g.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		g.socket = c
		return nil
	}))
	if err != nil {
		return nil, guardError("open a socket to nftables", err)
	}
	return g, nil
}

// guardError adds what the user can do about a guard that cannot be set.
func guardError(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w; run as root or with CAP_NET_ADMIN", what, err)
	case unsupported(err):
		return fmt.Errorf("%s: %w; this kernel lacks what the guard against bypass needs, so nothing passes: "+
			"load the module nf_tables, or run a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// unsupported reports whether an error is one by which kernels reject what they have not been built for.
func unsupported(err error) bool {
	return slices.ContainsFunc(
		[]error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EINVAL, fs.ErrNotExist},
		func(e error) bool { return errors.Is(err, e) })
}

func (g *nft) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return g.conn.CloseLasting()
}

// ask performs one exchange with the kernel; every use of conn that sends goes through it. A failed exchange may have left
// answers behind, which the next one would take for its own, and so on forever: so they are drained first.
func (g *nft) ask(what string, exchange func() error) error {
	if g.closed {
		return errClosed // conn would open another socket, in whatever namespace the thread is in
	}
	err := g.socket.SetReadDeadline(time.Now().Add(answerTime))
	if err == nil {
		err = g.drain()
	}
	if err == nil {
		err = exchange()
	}
	if err != nil {
		return guardError(what, err)
	}
	return nil
}

// drain empties the socket. The kernel's answers to earlier requests are there already, since it answers while they are being
// sent; a dump in progress continues as it is read, to its end.
func (g *nft) drain() error {
	raw, err := g.socket.SyscallConn()
	if err != nil {
		return err
	}
	var stop error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte // reading its first byte discards the rest of an answer
		for stop == nil || errors.Is(stop, unix.ENOBUFS) || errors.Is(stop, unix.EINTR) {
			_, _, stop = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
		}
		return true
	})
	if err == nil && !errors.Is(stop, unix.EAGAIN) {
		err = os.NewSyscallError("recvfrom", stop)
	}
	return err
}

func inetTable(device string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: TablePrefix + device}
}

func arpTable(device string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyARP, Name: TablePrefix + device}
}

// content is what one of our tables holds.
type content struct {
	table  *nftables.Table
	sets   []namedSet
	chains []chain
}

func inetContent(i instance, d duty) content {
	return content{inetTable(i.device), setsOf(i, d), chainsOf(i, d)}
}

func arpContent(i instance) content {
	return content{arpTable(i.device), []namedSet{{set4, true, []netip.Prefix{i.v4}}}, arpChains}
}

func (g *nft) tables() (tables []*nftables.Table, err error) {
	err = g.ask("list nftables' tables", func() error {
		tables, err = g.conn.ListTables()
		return err
	})
	return tables, err
}

func (g *nft) list() ([]instance, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.instances()
}

func (g *nft) instances() ([]instance, error) {
	tables, err := g.tables()
	if err != nil {
		return nil, err
	}
	var out []instance
	for _, t := range tables {
		device, ours := strings.CutPrefix(t.Name, TablePrefix)
		if !ours || !validInterface(device) {
			continue
		}
		at := slices.IndexFunc(out, func(i instance) bool { return i.device == device })
		if at < 0 {
			out = append(out, instance{device: device})
			at = len(out) - 1
		}
		if t.Family == nftables.TableFamilyINet {
			if out[at].v4, err = g.rangeOf(t, set4); err != nil {
				return nil, err
			}
			if out[at].v6, err = g.rangeOf(t, set6); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// rangeOf returns the range that a set holds; the zero prefix means that it is not one that we would have written.
func (g *nft) rangeOf(t *nftables.Table, name string) (netip.Prefix, error) {
	s, err := g.lookUp(t, name)
	if err != nil || s == nil {
		return netip.Prefix{}, err
	}
	elements, err := g.elements(s)
	if err == nil {
		return prefixIn(elements), nil
	}
	// The error does not tell whether the set has just been removed, but looking it up again does.
	if s, gone := g.lookUp(t, name); gone == nil && s == nil {
		return netip.Prefix{}, nil
	}
	return netip.Prefix{}, err
}

// lookUp returns a set, or nil if there is none.
func (g *nft) lookUp(t *nftables.Table, name string) (s *nftables.Set, err error) {
	err = g.ask("look for nftables' set "+name, func() error {
		s, err = g.conn.GetSetByName(t, name)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return s, err
}

// prefixIn returns the prefix that the elements of an interval set form, if they form a single one.
func prefixIn(elements []nftables.SetElement) netip.Prefix {
	var first, after netip.Addr
	for _, e := range elements {
		a, ok := netip.AddrFromSlice(e.Key)
		if !ok {
			return netip.Prefix{}
		}
		if e.IntervalEnd {
			after = a
		} else if first.IsValid() {
			return netip.Prefix{}
		} else {
			first = a
		}
	}
	for bits := 0; first.IsValid() && bits <= first.BitLen(); bits++ {
		p := netip.PrefixFrom(first, bits)
		if p == p.Masked() && last(p).Next() == after {
			return p
		}
	}
	return netip.Prefix{}
}

// last returns the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (g *nft) remove(device string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	tables, err := g.tables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == TablePrefix+device && (t.Family == nftables.TableFamilyINet || t.Family == nftables.TableFamilyARP) {
			g.conn.DelTable(&nftables.Table{Family: t.Family, Name: t.Name})
		}
	}
	return g.ask("remove nftables' table "+TablePrefix+device, g.conn.Flush)
}

func (g *nft) set(i instance, d duty) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	what := "set nftables' table inet " + TablePrefix + i.device
	g.replace(inetContent(i, d))
	g.replace(arpContent(i))
	err := g.ask(what, g.conn.Flush)
	without := unsupported(err)
	if without {
		// A kernel without nftables for ARP rejects the whole transaction. The guard for IP packets must not depend on that.
		g.replace(inetContent(i, d))
		err = g.ask(what, g.conn.Flush)
	}
	if err == nil {
		g.noARP = without
	}
	return err
}

// replace queues the replacement of a table. Adding it first makes the deletion always succeed.
func (g *nft) replace(c content) {
	g.conn.AddTable(c.table)
	g.conn.DelTable(c.table)
	g.conn.AddTable(c.table)
	for _, s := range c.sets {
		g.addSet(c.table, s)
	}
	for _, x := range c.chains {
		made := g.conn.AddChain(x.in(c.table))
		for _, r := range x.rules {
			g.conn.AddRule(&nftables.Rule{Table: c.table, Chain: made, Exprs: r.exprs, UserData: r.comment()})
		}
	}
}

func (g *nft) addSet(t *nftables.Table, n namedSet) {
	kind := nftables.TypeIP6Addr
	if n.v4 {
		kind = nftables.TypeIPAddr
	}
	s := &nftables.Set{Table: t, Name: n.name, KeyType: kind, KeyByteOrder: binaryutil.BigEndian, Interval: true}
	// AddSet fails only for anonymous sets or without a key type; errors of the kernel are returned by Flush.
	_ = g.conn.AddSet(s, n.elements())
}

func (g *nft) whole(i instance, d duty) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	same, err := g.sameContent(inetContent(i, d))
	if !same || err != nil || g.noARP {
		return same, err
	}
	return g.sameContent(arpContent(i))
}

// sameContent reports whether a table exists with exactly this content.
func (g *nft) sameContent(want content) (bool, error) {
	for _, s := range want.sets {
		same, err := g.sameSet(want.table, s)
		if !same || err != nil {
			return false, err
		}
	}
	chains, err := g.chains(want.table.Family)
	if err != nil {
		return false, err
	}
	found := 0
	for _, c := range chains {
		if c.Table.Name != want.table.Name {
			continue
		}
		at := slices.IndexFunc(want.chains, func(w chain) bool { return w.is(c) })
		if at < 0 {
			return false, nil
		}
		got, err := g.rules(want.table, c)
		if err != nil || !slices.EqualFunc(got, want.chains[at].rules, sameRule) {
			return false, err
		}
		found++
	}
	return found == len(want.chains), nil
}

// sameSet reports whether the set exists with exactly these elements.
func (g *nft) sameSet(t *nftables.Table, n namedSet) (bool, error) {
	s, err := g.lookUp(t, n.name)
	if s == nil || err != nil {
		return false, err
	}
	got, err := g.elements(s)
	if err != nil {
		return false, err
	}
	want := n.elements()
	less := func(a, b nftables.SetElement) int {
		return cmp.Or(bytes.Compare(a.Key, b.Key), compareBool(b.IntervalEnd, a.IntervalEnd))
	}
	slices.SortFunc(got, less)
	slices.SortFunc(want, less)
	return slices.EqualFunc(got, want, func(a, b nftables.SetElement) bool {
		return bytes.Equal(a.Key, b.Key) && a.IntervalEnd == b.IntervalEnd
	}), nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func (g *nft) elements(s *nftables.Set) (elements []nftables.SetElement, err error) {
	err = g.ask("list the elements of nftables' set "+s.Name, func() error {
		elements, err = g.conn.GetSetElements(s)
		return err
	})
	return elements, err
}

func (g *nft) chains(family nftables.TableFamily) (chains []*nftables.Chain, err error) {
	err = g.ask("list nftables' chains", func() error {
		chains, err = g.conn.ListChainsOfTableFamily(family)
		return err
	})
	return chains, err
}

func (g *nft) rules(t *nftables.Table, c *nftables.Chain) (rules []*nftables.Rule, err error) {
	err = g.ask("list nftables' rules", func() error {
		rules, err = g.conn.GetRules(t, c)
		return err
	})
	return rules, err
}

func (g *nft) notes(device string) ([]setting, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := inetTable(device)
	chains, err := g.chains(t.Family)
	if err != nil {
		return nil, err
	}
	var out []setting
	for _, c := range chains {
		if c.Table.Name != t.Name || c.Name != noted {
			continue
		}
		rules, err := g.rules(t, c)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			if s, ok := parseSetting(text); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// blocks implements guard. Whether rules that name the device do let its packets through is up to their author.
func (g *nft) blocks(device string) (out []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var chains []*nftables.Chain
	err = g.ask("list nftables' chains", func() error {
		chains, err = g.conn.ListChains()
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, c := range chains {
		forwards := c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop &&
			(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyIPv6 || c.Table.Family == nftables.TableFamilyINet)
		if !forwards {
			continue
		}
		named, err := g.names(c.Table, chains, device)
		if err != nil {
			return nil, err
		}
		if !named {
			out = append(out, familyName[c.Table.Family]+" "+c.Table.Name+" "+c.Name)
		}
	}
	return out, nil
}

var familyName = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// names reports whether any rule of a table compares something with a device's name.
func (g *nft) names(t *nftables.Table, chains []*nftables.Chain, device string) (bool, error) {
	for _, c := range chains {
		if c.Table.Name != t.Name || c.Table.Family != t.Family {
			continue
		}
		rules, err := g.rules(t, c)
		if err != nil {
			return false, err
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if cmp, ok := e.(*expr.Cmp); ok && string(bytes.TrimRight(cmp.Data, "\x00")) == device {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// sameRule compares a rule from the kernel with one of ours, ignoring counter values.
func sameRule(got *nftables.Rule, want rule) bool {
	if why, _ := userdata.GetString(got.UserData, userdata.TypeComment); why != want.why {
		return false
	}
	return slices.EqualFunc(got.Exprs, want.exprs, func(a, b expr.Any) bool {
		if _, ok := a.(*expr.Counter); ok {
			_, ok = b.(*expr.Counter)
			return ok
		}
		// The source register of a mark is not read back.
		if x, ok := a.(*expr.Ct); ok {
			y, ok := b.(*expr.Ct)
			return ok && x.Key == y.Key
		}
		x, err := expr.Marshal(unix.NFPROTO_INET, a)
		if err != nil {
			return false
		}
		y, err := expr.Marshal(unix.NFPROTO_INET, b)
		return err == nil && slices.Equal(x, y)
	})
}
