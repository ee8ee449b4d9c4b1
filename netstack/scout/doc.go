// Package scout finds out how one UDP socket is reached from outside: which addresses servers see it with, what the NAT between
// is like, and whether the router opens a port for it. It runs the decisions of package stun and keeps a client of package
// portmap; the socket is somebody else's.
//
//	Look: servers, addresses ──┐                    ┌─► Send, by the socket
//	STUN: what came to it ─────┼─► stun.Prober ─────┤
//	                           └─► portmap.Client ──┴─► Changed; Report, Endpoints
//
// It looks when it is told to, after the network changed, and every half an hour besides: a NAT that was started anew says so to
// nobody.
package scout
