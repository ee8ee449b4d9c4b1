//go:build !linux

package osnet

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Host is the real Network. It is not implemented on this operating system, and New always fails.
type Host struct{}

var _ Network = (*Host)(nil)

func unsupported() error {
	return fmt.Errorf("addresses, routes and the guard against bypass on %s: %w; run the agent on Linux",
		runtime.GOOS, ErrUnsupported)
}

// New fails with ErrUnsupported.
func New(*slog.Logger) (*Host, error) { return nil, unsupported() }

// Up implements Network.
func (*Host) Up(Config) error { return unsupported() }

// Down implements Network.
func (*Host) Down() error { return unsupported() }

// Problems implements Network.
func (*Host) Problems() []string { return []string{unsupported().Error()} }

// Endpoints implements Network.
func (*Host) Endpoints(proto.Mesh) ([]netip.Addr, error) { return nil, unsupported() }

// Gateway implements Network.
func (*Host) Gateway() (gateway, local netip.Addr, err error) { return gateway, local, unsupported() }

// Gateway6 implements Network.
func (*Host) Gateway6() (gateway, local netip.Addr, err error) { return gateway, local, unsupported() }

// Clashes implements Network.
func (*Host) Clashes(proto.Mesh) ([]string, error) { return nil, unsupported() }

// Watch implements Network.
func (*Host) Watch(context.Context) (<-chan struct{}, error) { return nil, unsupported() }

// Close implements Network.
func (*Host) Close() error { return nil }
