package wg

import (
	"log/slog"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/proto"
)

// NewInlineBy is NewInline with a given clock.
func NewInlineBy(now func() time.Time, self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) *Inline {
	return newInline(self, d, b, log, now)
}

// ClockJumped makes the timers be checked again after the clock was set.
func (e *Inline) ClockJumped() { e.timers.poke() }

// Limit lowers the message limits of sessions. It must be called before Configure.
func (e *Inline) Limit(l session.Limits) { e.limits = l }
