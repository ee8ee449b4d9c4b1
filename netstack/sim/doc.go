// Package sim is an Internet in memory, for tests: hosts with addresses, UDP and streams between them, and TUN devices
// with a small host behind them. Everything in it waits in ways that testing/synctest knows, and it has no goroutines of
// its own, so a mesh lives ten virtual minutes in milliseconds.
//
//	Internet ─┬─ Host "a" ── addresses, may change at any time; sleeps and wakes
//	          │    ├─ Bind ........ a conn.Bind over the host's UDP, for netstack/bind
//	          │    ├─ ListenUDP ... net.PacketConn
//	          │    └─ Listen, DialContext ... net.Listener, net.Conn
//	          ├─ NAT "home" ── mapping, filtering, ports, timeouts (RFC 4787); reboots
//	          │    ├─ Host "b" ── private addresses, translated; global ones, routed
//	          │    └─ NAT ....... and so on: "home" is a carrier's
//	          ├─ Link a-b: latency, loss, reordering, MTU, cut
//	          └─ Tap, Inject ... what somebody on the way sees, and what he puts there
//
//	TUN ── the engine's side is a tun.Device
//	 └─ Stack ── the host's side: answers pings, echoes UDP, opens and accepts TCP connections
//
// A packet is looked at when it is sent: who has its destination now, and what does the link do. What is sent to nobody
// is silence, as on the real one. Only a NAT on the way in judges it when it arrives there, since it may have been asked for
// meanwhile: that is how punching works. A stream holds back what cannot be delivered and delivers it once it can, as TCP does;
// it breaks only by a reset or by its users' deadlines.
//
// Losses follow from the seed and the number of the packet on its link, so a run can be repeated as far as the order of
// goroutines allows it.
package sim
