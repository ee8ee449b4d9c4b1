package noise

import (
	"io"
	"net/netip"
	"time"
)

// The limits of a Gate. A handshake costs about 0.2 ms; loadAt per second without a cookie take 3 % of a processor.
const (
	loadAt      = 128              // handshakes per second at which senders must prove their address
	loadFor     = time.Second      // how long that lasts after the last busy second
	maxReplies  = 2048             // cookie replies per second
	forKnown    = maxReplies / 4   // of these, reserved for known addresses when strangers have taken all others
	maxSources  = 4096             // addresses tracked separately
	perSource   = time.Second / 20 // one handshake per proven address
	burst       = 5 * perSource
	sourceBits6 = 64 // prefix length of one IPv6 host
)

// Verdict is what to do with a handshake message.
type Verdict int

// The verdicts. The zero one drops.
const (
	Drop      Verdict = iota
	Pass              // read it
	Challenge         // send the cookie reply
	Refuse            // it is for our key, but over the limit under load
)

// Gate decides which handshake messages are worth handling. Under load it accepts only messages whose sender has proved its
// address with a cookie, and limits their rate per address. It must be used by one goroutine at a time.
type Gate struct {
	// Known reports whether a peer was certainly at an address. However many strangers there are, they cannot use up the cookie
	// replies and table entries of known addresses, so live sessions are still renewed. Nil means none are known.
	Known func(netip.Addr) bool

	cookies cookies
	second  time.Time // start of the second being counted
	seen    int
	replies int       // to any address
	kept    int       // from the reserve for known addresses
	load    time.Time // when the load ends
	sources map[netip.Addr]time.Time
}

// Admit judges an initiation or response, whose mac1 must be for l. Cookies are bound to src; ip is the address in it. Under
// load Admit may write a cookie reply to out.
func (g *Gate) Admit(now time.Time, random io.Reader, l *Local, msg, src []byte, ip netip.Addr, out *[CookieReplySize]byte) (Verdict, error) {
	if !l.CheckMAC1(msg) {
		return Drop, nil
	}
	if d := now.Sub(g.second); d >= time.Second || d < 0 {
		g.second, g.seen, g.replies, g.kept = now, 0, 0, 0
		g.forget(now)
	}
	if g.seen++; g.seen > loadAt {
		g.load = now.Add(loadFor)
	}
	if !now.Before(g.load) {
		return Pass, nil
	}
	if g.cookies.check(now, msg, src) {
		if g.allow(now, ip) {
			return Pass, nil
		}
		return Refuse, nil
	}
	if !g.mayReply(ip) {
		return Refuse, nil
	}
	if err := g.cookies.reply(now, out, l, random, msg, src); err != nil {
		return Drop, err
	}
	return Challenge, nil
}

// mayReply reports whether one more cookie reply may be sent in this second, and counts it.
func (g *Gate) mayReply(ip netip.Addr) bool {
	switch {
	case g.replies < maxReplies-forKnown:
		g.replies++
	case g.kept < forKnown && g.known(ip):
		g.kept++
	default:
		return false
	}
	return true
}

func (g *Gate) known(ip netip.Addr) bool { return g.Known != nil && g.Known(ip) }

// allow reports whether a proven address may have another handshake. g.sources holds when each address's credit is full again.
func (g *Gate) allow(now time.Time, ip netip.Addr) bool {
	at := ip
	if ip = ip.Unmap().WithZone(""); ip.Is6() {
		if p, err := ip.Prefix(sourceBits6); err == nil {
			ip = p.Addr()
		}
	}
	whole, listed := g.sources[ip]
	if !listed && len(g.sources) >= maxSources && !g.known(at) {
		return false
	}
	if whole.Before(now) {
		whole = now
	}
	if whole = whole.Add(perSource); whole.Sub(now) > burst {
		return false
	}
	if g.sources == nil {
		g.sources = map[netip.Addr]time.Time{}
	}
	g.sources[ip] = whole
	return true
}

// forget drops addresses whose credit is full again.
func (g *Gate) forget(now time.Time) {
	for ip, whole := range g.sources {
		if !whole.After(now) {
			delete(g.sources, ip)
		}
	}
}
