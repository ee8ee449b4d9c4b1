// Package outward finds a way out to a server of the mesh, through what stands between: nothing, a proxy that has to be asked
// for a connection, or one that ends TLS by itself. Whatever the way, the two ends speak TLS 1.3 with certificates of the mesh,
// from end to end:
//
//	straight          agent ══ mesh TLS ══════════════════════════════ server:443
//	CONNECT           agent ── CONNECT ── proxy                              what the environment says (HTTPS_PROXY, NO_PROXY)
//	                  agent ══ mesh TLS ══════╪═══════════════════════ server:443
//	ends TLS          agent ── TLS, GET /v1/tls ── proxy ── TLS, the same ── server:443
//	                  agent ══ mesh TLS ═══════════╪══════════════════ server
//
// In the last, mesh TLS runs inside an Upgrade, or inside a WebSocket where the proxy passes no other; nobody has to be told:
// it is tried when what answers shows a certificate that is not the mesh's. Nothing that such a proxy says is believed.
package outward
