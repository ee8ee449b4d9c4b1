// Package outward connects to a server of the mesh through whatever stands in between: nothing, a proxy that must be asked for a
// connection, or a proxy that terminates TLS. In each case the two ends speak TLS 1.3 with mesh certificates, end to end:
//
//	direct            agent ══ mesh TLS ══════════════════════════════ server:443
//	CONNECT           agent ── CONNECT ── proxy                              as the environment says (HTTPS_PROXY, NO_PROXY)
//	                  agent ══ mesh TLS ══════╪═══════════════════════ server:443
//	terminates TLS    agent ── TLS, GET /v1/tls ── proxy ── TLS, the same ── server:443
//	                  agent ══ mesh TLS ═══════════╪══════════════════ server
//
// In the last case mesh TLS runs inside an HTTP Upgrade, or inside a WebSocket where the proxy passes no other protocol. It
// needs no configuration: it is tried when the certificate presented is not the mesh's. Nothing that such a proxy says is
// trusted.
package outward
