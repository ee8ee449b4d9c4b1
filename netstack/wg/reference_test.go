package wg_test

import (
	"log/slog"
	"runtime"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func reference(_ proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
	return wg.NewReference(d, b, log)
}

func TestReference(t *testing.T) {
	wgtest.Contract(t, reference)
	// Finalizers that reach into synctest bubbles that are gone would end the program here.
	runtime.GC()
	runtime.GC()
}
