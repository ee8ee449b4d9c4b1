package wg_test

import (
	"log/slog"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

func inline(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
	return wg.NewInline(self, d, b, log)
}

func TestInline(t *testing.T) { wgtest.Contract(t, inline) }
