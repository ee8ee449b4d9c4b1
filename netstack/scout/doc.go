// Package scout finds out how one UDP socket is reachable from outside: the addresses that servers see, the behaviour of the NAT
// in between, and whether the router opens a port for it. It executes the decisions of package stun and runs a client of package
// portmap. The caller owns the socket.
//
//	Look: servers, addresses ──┐                    ┌─► Send, on the socket
//	STUN: messages received ───┼─► stun.Prober ─────┤
//	                           └─► portmap.Client ──┴─► Changed; Report, Endpoints
//
// It probes when told to, after the network changed, and every half hour besides, because a NAT that restarts announces it to
// nobody.
package scout
