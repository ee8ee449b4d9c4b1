// Package sim is an in-memory Internet for tests: hosts with addresses, UDP and streams between them, and TUN devices with a
// small host behind them. All its waiting is visible to testing/synctest, and it has no goroutines of its own, so a mesh runs
// through ten virtual minutes in milliseconds.
//
//	Internet ─┬─ Host "a" ── addresses, may change at any time; sleeps and wakes
//	          │    ├─ Bind ........ a conn.Bind over the host's UDP, for netstack/bind
//	          │    ├─ ListenUDP ... net.PacketConn
//	          │    └─ Listen, DialContext ... net.Listener, net.Conn
//	          ├─ NAT "home" ── mapping, filtering, ports, timeouts (RFC 4787); reboots
//	          │    ├─ Host "b" ── private addresses, translated; global ones, routed
//	          │    └─ NAT ....... and so on: "home" is then a carrier's NAT
//	          ├─ Link a-b: latency, loss, reordering, MTU, cut
//	          └─ Tap, Inject ... what an on-path observer sees, and what it injects
//
//	TUN ── the engine's side is a tun.Device
//	 └─ Stack ── the host's side: answers pings, echoes UDP, opens and accepts TCP connections
//
// The fate of a packet is decided when it is sent: who has its destination at that moment, and what the link does. A packet to
// nobody is lost silently, as on the real Internet. Only a NAT on the inbound path decides when the packet arrives there, since
// a mapping may have been opened meanwhile: that is how hole punching works. A stream holds back what cannot be delivered and
// delivers it once it can, as TCP does; it breaks only by a reset or by its users' deadlines.
//
// Losses follow from the seed and the number of the packet on its link, so a run is reproducible as far as the order of
// goroutines allows.
package sim
