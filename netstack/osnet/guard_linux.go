package osnet

import (
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

// guard is what keeps packets with overlay addresses off all other devices.
type guard interface {
	// list names the instances that have a guard in this network namespace.
	list() ([]instance, error)
	// whole says whether the guard stands as set would make it.
	whole(instance) (bool, error)
	// set makes or replaces the guard in one transaction: at no moment is there none.
	set(instance) error
	// remove takes the guard of a device away; without one it does nothing.
	remove(device string) error
	close() error
}

// nft is the guard by nftables, one table for each instance:
//
//	table inet redoubt-redoubt0 {
//	  set overlay4 { type ipv4_addr; flags interval; elements = { 100.80.0.0/16 } }
//	  set overlay6 { type ipv6_addr; flags interval; elements = { fd12:3456:789a::/48 } }
//	  chain overlay {
//	    ip saddr @overlay4 counter drop
//	    ip daddr @overlay4 counter drop
//	    ip6 saddr @overlay6 counter drop
//	    ip6 daddr @overlay6 counter drop
//	  }
//	  chain prerouting  { iifname != "redoubt0" iifname != "lo" jump overlay }   before defragmentation and translation
//	  chain input       { iifname != "redoubt0" iifname != "lo" jump overlay }   after translation
//	  chain forward     { iifname != "redoubt0" jump overlay
//	                      oifname != "redoubt0" jump overlay }
//	  chain output      { oifname != "redoubt0" oifname != "lo" jump overlay }   after translation of destinations
//	  chain postrouting { oifname != "redoubt0" oifname != "lo" jump overlay }   before translation of sources
//	  chain leaving     { oifname != "redoubt0" oifname != "lo" jump overlay }   after translation of sources
//	}
//
// and, so that the host does not tell the LAN that it has an overlay address, one for ARP:
//
//	table arp redoubt-redoubt0 {
//	  set overlay4 { ... }
//	  chain input  { arp saddr ip @overlay4 drop; arp daddr ip @overlay4 drop }
//	  chain output { the same }
//	}
type nft struct {
	// mu makes one exchange with the kernel of each method: conn does not keep those who share it from reading each other's
	// answers, and the keeper and whoever asks for clashes do share it.
	mu     sync.Mutex
	conn   *nftables.Conn
	socket *netlink.Conn // of conn
	closed bool
}

// answerTime is how long the kernel may take for one answer. It answers at once; the limit keeps a lost answer from
// stopping the keeper for good.
const answerTime = 10 * time.Second

const (
	set4  = "overlay4"
	set6  = "overlay6"
	drops = "overlay"
)

// hook is one base chain of the table.
type hook struct {
	name     string
	at       *nftables.ChainHook
	priority nftables.ChainPriority
	devices  []expr.MetaKey // which side must be ours
}

// Priorities: defragmentation is at -400, connection tracking at -200, translation of destinations at -100 and of
// sources at 100; users' own chains are mostly between -300 and 300.
var hooks = []hook{
	{"prerouting", nftables.ChainHookPrerouting, -450, []expr.MetaKey{expr.MetaKeyIIFNAME}},
	{"input", nftables.ChainHookInput, 450, []expr.MetaKey{expr.MetaKeyIIFNAME}},
	{"forward", nftables.ChainHookForward, 450, []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME}},
	{"output", nftables.ChainHookOutput, 450, []expr.MetaKey{expr.MetaKeyOIFNAME}},
	{"postrouting", nftables.ChainHookPostrouting, -450, []expr.MetaKey{expr.MetaKeyOIFNAME}},
	{"leaving", nftables.ChainHookPostrouting, 450, []expr.MetaKey{expr.MetaKeyOIFNAME}},
}

// ARP has hooks and offsets of its own: the addresses of an Ethernet and IPv4 message stand at 14 and 24.
var (
	arpHooks = []hook{
		{"input", nftables.ChainHookRef(0), 0, nil},
		{"output", nftables.ChainHookRef(1), 0, nil},
	}
	arpOffsets = []uint32{14, 24}
)

// newNFT opens a socket in the network namespace of the calling thread, where it stays.
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

// guardError says what a person can do about a guard that cannot be had.
func guardError(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w; run as root or with CAP_NET_ADMIN", what, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT),
		errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w; this kernel lacks what the guard against bypass needs, so nothing passes: "+
			"load the module nf_tables, or run a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (g *nft) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return g.conn.CloseLasting()
}

// ask has one exchange with the kernel; every use of conn that sends goes through it. A question that failed may have left
// answers behind, which would be taken for those of the next one, and so on forever: they are taken out first.
func (g *nft) ask(what string, exchange func() error) error {
	if g.closed {
		return errClosed // conn would open another socket, in whatever namespace it finds itself.
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

// drain empties the socket. What the kernel has to say to earlier questions is there already, as it answers while they
// are sent; a list that was begun goes on as it is read, to its end.
func (g *nft) drain() error {
	raw, err := g.socket.SyscallConn()
	if err != nil {
		return err
	}
	var stop error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte // The rest of an answer goes with its first byte.
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

// rangeOf reads the range that a set holds; the zero prefix stands for none that we would have written.
func (g *nft) rangeOf(t *nftables.Table, name string) (netip.Prefix, error) {
	s, err := g.lookUp(t, name)
	if err != nil || s == nil {
		return netip.Prefix{}, err
	}
	var elements []nftables.SetElement
	err = g.ask("list the elements of nftables' set "+name, func() (err error) {
		elements, err = g.conn.GetSetElements(s)
		return err
	})
	if err == nil {
		return prefixIn(elements), nil
	}
	// The error does not tell whether the set has just been removed; the set does.
	if s, gone := g.lookUp(t, name); gone == nil && s == nil {
		return netip.Prefix{}, nil
	}
	return netip.Prefix{}, err
}

// lookUp returns a set, or nil where there is none.
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

// prefixIn returns the prefix that the elements of a set of intervals are, if they are one.
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

func (g *nft) set(i instance) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	what := "set nftables' table inet " + TablePrefix + i.device
	g.replace(i)
	g.replaceARP(i)
	err := g.ask(what, g.conn.Flush)
	// A kernel without nftables for ARP takes nothing of the transaction. What guards packets must not hang on that.
	if err != nil && !errors.Is(err, unix.EPERM) {
		g.replace(i)
		err = g.ask(what, g.conn.Flush)
	}
	return err
}

// replace queues the table. Adding it first makes the deletion always possible.
func (g *nft) replace(i instance) {
	t := inetTable(i.device)
	g.conn.AddTable(t)
	g.conn.DelTable(t)
	g.conn.AddTable(t)
	g.addSet(t, set4, nftables.TypeIPAddr, i.v4)
	g.addSet(t, set6, nftables.TypeIP6Addr, i.v6)

	regular := g.conn.AddChain(&nftables.Chain{Name: drops, Table: t})
	for _, r := range dropRules() {
		g.conn.AddRule(&nftables.Rule{Table: t, Chain: regular, Exprs: r.exprs, UserData: r.comment()})
	}
	for _, h := range hooks {
		c := g.conn.AddChain(h.chain(t))
		for _, r := range jumpRules(h, i.device) {
			g.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: r.exprs, UserData: r.comment()})
		}
	}
}

func (g *nft) replaceARP(i instance) {
	t := arpTable(i.device)
	g.conn.AddTable(t)
	g.conn.DelTable(t)
	g.conn.AddTable(t)
	g.addSet(t, set4, nftables.TypeIPAddr, i.v4)
	for _, h := range arpHooks {
		c := g.conn.AddChain(h.chain(t))
		for _, offset := range arpOffsets {
			g.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: dropIn(set4, offset, 4)})
		}
	}
}

func (g *nft) addSet(t *nftables.Table, name string, kind nftables.SetDatatype, p netip.Prefix) {
	elements := []nftables.SetElement{{Key: p.Addr().AsSlice()}}
	if after := last(p).Next(); after.IsValid() {
		elements = append(elements, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
	}
	s := &nftables.Set{Table: t, Name: name, KeyType: kind, KeyByteOrder: binaryutil.BigEndian, Interval: true}
	// AddSet fails only where a set is anonymous or has no key type; what the kernel refuses comes with Flush.
	_ = g.conn.AddSet(s, elements)
}

func (h hook) chain(t *nftables.Table) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	priority := h.priority
	return &nftables.Chain{
		Name: h.name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: h.at, Priority: &priority, Policy: &accept,
	}
}

// rule is an nftables rule and what it is for, which `nft list` shows as its comment.
type rule struct {
	why   string
	exprs []expr.Any
}

func (r rule) comment() []byte { return userdata.AppendString(nil, userdata.TypeComment, r.why) }

// dropRules are the chain that all hooks jump to.
func dropRules() []rule {
	family := func(f byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
		}
	}
	v4, v6 := family(unix.NFPROTO_IPV4), family(unix.NFPROTO_IPV6)
	return []rule{
		{"overlay source outside the tunnel", slices.Concat(v4, dropIn(set4, 12, 4))},
		{"overlay destination outside the tunnel", slices.Concat(v4, dropIn(set4, 16, 4))},
		{"overlay source outside the tunnel", slices.Concat(v6, dropIn(set6, 8, 16))},
		{"overlay destination outside the tunnel", slices.Concat(v6, dropIn(set6, 24, 16))},
	}
}

// dropIn counts and drops packets that have an address of the set at an offset of the network header.
func dropIn(set string, offset, length uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// jumpRules send what is on other devices to the chain of drops. On lo the host talks to itself, which is not
// ours to judge; nothing is forwarded from or to lo.
func jumpRules(h hook, device string) []rule {
	var out []rule
	for _, key := range h.devices {
		r := rule{why: "only " + device + " carries the mesh"}
		r.exprs = append(r.exprs, isNot(key, device)...)
		if len(h.devices) == 1 {
			r.exprs = append(r.exprs, isNot(key, "lo")...)
		}
		r.exprs = append(r.exprs, &expr.Verdict{Kind: expr.VerdictJump, Chain: drops})
		out = append(out, r)
	}
	return out
}

// isNot matches where the packet's device has another name. Names hold when the device goes and comes back.
func isNot(key expr.MetaKey, device string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: name},
	}
}

func (g *nft) whole(i instance) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all, err := g.instances()
	if err != nil {
		return false, err
	}
	if !slices.Contains(all, i) {
		return false, nil
	}
	var chains []*nftables.Chain
	err = g.ask("list nftables' chains", func() error {
		chains, err = g.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
		return err
	})
	if err != nil {
		return false, err
	}
	t := inetTable(i.device)
	found := 0
	for _, c := range chains {
		if c.Table.Name != t.Name {
			continue
		}
		want, known := wantChain(c, i.device)
		if !known {
			return false, nil
		}
		var got []*nftables.Rule
		err := g.ask("list nftables' rules", func() (err error) {
			got, err = g.conn.GetRules(t, c)
			return err
		})
		if err != nil {
			return false, err
		}
		if !slices.EqualFunc(got, want, sameRule) {
			return false, nil
		}
		found++
	}
	return found == len(hooks)+1, nil
}

// wantChain returns the rules that a chain of our table has, if it stands at the place where we put it.
func wantChain(c *nftables.Chain, device string) ([]rule, bool) {
	if c.Name == drops {
		return dropRules(), c.Hooknum == nil
	}
	for _, h := range hooks {
		if h.name == c.Name {
			ok := c.Hooknum != nil && *c.Hooknum == *h.at && c.Priority != nil && *c.Priority == h.priority &&
				c.Type == nftables.ChainTypeFilter
			return jumpRules(h, device), ok
		}
	}
	return nil, false
}

// sameRule compares a rule of the kernel's with one of ours, what it has counted aside.
func sameRule(got *nftables.Rule, want rule) bool {
	if why, _ := userdata.GetString(got.UserData, userdata.TypeComment); why != want.why {
		return false
	}
	return slices.EqualFunc(got.Exprs, want.exprs, func(a, b expr.Any) bool {
		if _, ok := a.(*expr.Counter); ok {
			_, ok = b.(*expr.Counter)
			return ok
		}
		x, err := expr.Marshal(unix.NFPROTO_INET, a)
		if err != nil {
			return false
		}
		y, err := expr.Marshal(unix.NFPROTO_INET, b)
		return err == nil && slices.Equal(x, y)
	})
}
