package noise

import (
	"io"
	"net/netip"
	"time"
)

// What a Gate lets pass. A handshake costs some 0.2 ms; without a cookie, so many a second take 3 % of a processor.
const (
	loadAt      = 128              // handshakes a second, at which senders must prove their address
	loadFor     = time.Second      // how long that lasts after the last busy second
	maxReplies  = 2048             // cookie replies a second
	forKnown    = maxReplies / 4   // of these, for known addresses where strangers have taken all others
	maxSources  = 4096             // addresses that are told apart
	perSource   = time.Second / 20 // one handshake each, for an address that is proven
	burst       = 5 * perSource
	sourceBits6 = 64 // what one host has of IPv6
)

// Verdict is what is to be done with a handshake message.
type Verdict int

// The verdicts. The zero one drops.
const (
	Drop      Verdict = iota
	Pass              // read it
	Challenge         // send the cookie reply
	Refuse            // it is for the key, and more than is taken under load
)

// Gate decides which handshake messages are worth their price. Under load it takes only those whose sender proved by
// a cookie that it is where it says, and of each address only some. It is for one goroutine at a time.
type Gate struct {
	// Known says whether an address is one that a peer was at for sure. However many strangers there are, they take no
	// cookie and no place from those: a session that lives is renewed. Nil knows none.
	Known func(netip.Addr) bool

	cookies cookies
	second  time.Time // the second that is counted now
	seen    int
	replies int       // to anybody
	kept    int       // that were kept for known addresses
	load    time.Time // until when there is load
	sources map[netip.Addr]time.Time
}

// Admit judges an initiation or response, whose mac1 must be that of l. Src is what a cookie is bound to, and ip the
// address in it. Under load it may write a cookie reply to out.
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

// mayReply says whether one more cookie may be sent in this second, and counts it.
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

// allow says whether a proven address may have another handshake. The map holds when its credit is whole again.
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

// forget drops addresses whose credit is whole again.
func (g *Gate) forget(now time.Time) {
	for ip, whole := range g.sources {
		if !whole.After(now) {
			delete(g.sources, ip)
		}
	}
}
