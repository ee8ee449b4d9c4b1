package wg

import "github.com/redoubt-mesh/redoubt/netstack/wg/session"

// Limit has sessions carry less than WireGuard's do. It comes before Configure.
func (e *Inline) Limit(l session.Limits) { e.limits = l }
