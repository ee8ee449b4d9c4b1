package bind

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/path"
)

// Endpoint is where a peer is, or the candidates for it. It does not change, and may be used by several peers.
type Endpoint struct {
	bind *Bind
	dst  netip.AddrPort // where via is set, one that nothing is sent to
	via  Via
	// extra is the socket of its own that packets leave by; nil: the one of all peers.
	extra *extra
	// sourced is what the inner Bind made of a received packet: it answers from the address that the packet came to.
	// Nil in candidates.
	sourced conn.Endpoint
	src     netip.Addr
	ifindex int32
	// generation is the bind's when the source was learned. In a later one it may be an address that we lost.
	generation uint64
	forgotten  atomic.Bool
	refused    bool
	plain      atomic.Pointer[conn.Endpoint] // without a source; made when first needed

	// others are the candidates after this one. Unknown says that this is a list of candidates, even if of one.
	others  []*Endpoint
	unknown bool
}

var _ conn.Endpoint = (*Endpoint)(nil)

// inner is what the inner Bind should send to, and whether that carries a source address.
func (e *Endpoint) inner() (ep conn.Endpoint, sourced bool, err error) {
	if e.sourced != nil && !e.forgotten.Load() && e.generation == e.bind.generation.Load() {
		return e.sourced, true, nil
	}
	if p := e.plain.Load(); p != nil {
		return *p, false, nil
	}
	// A variable of its own, which is only then made: this is called for every packet.
	plain, err := e.bind.cfg.Inner.ParseEndpoint(e.dst.String())
	if err != nil {
		return nil, false, fmt.Errorf("endpoint %s: %w", e.dst, err)
	}
	e.plain.Store(&plain)
	return plain, false, nil
}

// Addr is the peer's address and port; of several candidates, the first.
func (e *Endpoint) Addr() netip.AddrPort { return e.dst }

// Via is the way through a relay that this is; zero where it is direct.
func (e *Endpoint) Via() Via { return e.via }

// Socket is the number of the extra socket that this is a way by; 0: it is none.
func (e *Endpoint) Socket() uint32 {
	if e.extra == nil {
		return 0
	}
	return e.extra.number
}

// ClearSrc forgets the local address that packets leave from.
func (e *Endpoint) ClearSrc() { e.forgotten.Store(true) }

// SrcIP is the local address that packets leave from, if that is known.
func (e *Endpoint) SrcIP() netip.Addr {
	if e.forgotten.Load() {
		return netip.Addr{}
	}
	return e.src
}

// SrcToString is SrcIP as text.
func (e *Endpoint) SrcToString() string {
	if src := e.SrcIP(); src.IsValid() {
		return src.String()
	}
	return ""
}

// DstIP is the peer's address; of several candidates, the first.
func (e *Endpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToBytes is what handshake cookies are bound to.
func (e *Endpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // has no errors
	return b
}

// DstToString is the text form that ParseText reads.
func (e *Endpoint) DstToString() string {
	if !e.unknown {
		return e.dst.String()
	}
	list := make([]netip.AddrPort, 0, 1+len(e.others))
	list = append(list, e.dst)
	for _, o := range e.others {
		list = append(list, o.dst)
	}
	return FormatCandidates(list)
}

// The text form of an endpoint is "addr:port" where the peer is known to be there, or "?addr:port,addr:port..." for
// candidates, best first. ParseEndpoint takes either, with or without the question mark, to mean candidates.

// FormatCandidates writes a list of candidates.
func FormatCandidates(list []netip.AddrPort) string {
	var b strings.Builder
	b.WriteByte('?')
	for i, a := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(a.String())
	}
	return b.String()
}

// ParseText reads the text form of an endpoint. It does not ask whether the addresses may be used.
func ParseText(s string) (list []netip.AddrPort, known bool, err error) {
	rest, candidates := strings.CutPrefix(s, "?")
	for part := range strings.SplitSeq(rest, ",") {
		if len(list) == path.MaxCandidates {
			return nil, false, fmt.Errorf("endpoint: more than %d candidates", path.MaxCandidates)
		}
		a, err := netip.ParseAddrPort(part)
		if err != nil {
			return nil, false, fmt.Errorf("endpoint: want addr:port, or several with commas between: %w", err)
		}
		list = append(list, a)
	}
	return list, !candidates && len(list) == 1, nil
}
