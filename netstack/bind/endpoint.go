package bind

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/path"
)

// Endpoint is where a peer is, or the candidates for it. It is immutable, and may be shared by several peers.
type Endpoint struct {
	bind *Bind
	dst  netip.AddrPort // if via is set, one that nothing is sent to
	via  Via
	// extra is the extra socket that packets are sent from; nil means the shared one.
	extra *extra
	// sourced is the inner Bind's endpoint of a received packet: it sends from the address that the packet came to. It is nil
	// in candidates.
	sourced conn.Endpoint
	src     netip.Addr
	ifindex int32
	// generation is the bind's when the source was learned. In a later one we may have lost that address.
	generation uint64
	forgotten  atomic.Bool
	refused    bool
	plain      atomic.Pointer[conn.Endpoint] // without a source; created when first needed

	// others are the candidates after this one. unknown is set for a list of candidates, even of one.
	others  []*Endpoint
	unknown bool
}

var _ conn.Endpoint = (*Endpoint)(nil)

// inner returns the inner Bind's endpoint to send to, and whether it carries a source address.
func (e *Endpoint) inner() (ep conn.Endpoint, sourced bool, err error) {
	if e.sourced != nil && !e.forgotten.Load() && e.generation == e.bind.generation.Load() {
		return e.sourced, true, nil
	}
	if p := e.plain.Load(); p != nil {
		return *p, false, nil
	}
	// A separate variable, allocated only when needed: this function is called for every packet.
	plain, err := e.bind.cfg.Inner.ParseEndpoint(e.dst.String())
	if err != nil {
		return nil, false, fmt.Errorf("endpoint %s: %w", e.dst, err)
	}
	e.plain.Store(&plain)
	return plain, false, nil
}

// Addr returns the peer's address and port; of several candidates, the first.
func (e *Endpoint) Addr() netip.AddrPort { return e.dst }

// Via returns the path through a relay; zero if direct.
func (e *Endpoint) Via() Via { return e.via }

// Socket returns the number of the extra socket of this path; 0 means none.
func (e *Endpoint) Socket() uint32 {
	if e.extra == nil {
		return 0
	}
	return e.extra.number
}

// ClearSrc forgets the local address that packets are sent from.
func (e *Endpoint) ClearSrc() { e.forgotten.Store(true) }

// SrcIP returns the local address that packets are sent from, if known.
func (e *Endpoint) SrcIP() netip.Addr {
	if e.forgotten.Load() {
		return netip.Addr{}
	}
	return e.src
}

// SrcToString returns SrcIP as text.
func (e *Endpoint) SrcToString() string {
	if src := e.SrcIP(); src.IsValid() {
		return src.String()
	}
	return ""
}

// DstIP returns the peer's address; of several candidates, the first.
func (e *Endpoint) DstIP() netip.Addr { return e.dst.Addr() }

// DstToBytes returns what handshake cookies are bound to.
func (e *Endpoint) DstToBytes() []byte {
	b, _ := e.dst.MarshalBinary() // never fails
	return b
}

// DstToString returns the text form that ParseText reads.
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

// The text form of an endpoint is "addr:port" if the peer is known to be there, or "?addr:port,addr:port..." for candidates,
// best first. ParseEndpoint treats either as candidates, with or without the question mark.

// FormatCandidates formats a list of candidates.
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

// ParseText parses the text form of an endpoint. It does not check whether the addresses may be used.
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
