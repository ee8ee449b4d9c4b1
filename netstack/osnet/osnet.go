package osnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Markers of the state that is ours. The numbers are unassigned in iproute2's lists and unlike those of wg-quick, Tailscale
// (table 52, rules 5210-5270), NetBird, Calico, Cilium and systemd-networkd.
const (
	// DefaultTable is the routing table.
	DefaultTable = 7707
	// RouteProtocol is the origin of our routes and rules: `ip route show proto 77` lists them.
	RouteProtocol = 77
	// RulePriority is the priority of the rule for marked packets. The rule for our table comes next, and then the rule that
	// sends traffic beyond the mesh to it.
	RulePriority = 5150
	// Mark is the SO_MARK of underlay sockets. It is the same for all: sockets are opened before anything is configured.
	Mark = 0x5244
	// TablePrefix and the device's name form the name of the nftables table.
	TablePrefix = "redoubt-"
)

const (
	// MaxEndpoints bounds what Endpoints returns.
	MaxEndpoints = 12
	// MaxClashes bounds what Clashes returns.
	MaxClashes = 32
	// FoldInterval is how long further changes are batched after one was reported at once.
	FoldInterval = 250 * time.Millisecond
)

// ErrUnsupported means that there is no implementation for this operating system.
var ErrUnsupported = errors.New("not supported yet")

// Config is what Up establishes.
type Config struct {
	// Interface is the name of the TUN device. It must exist; it disappears with the process that created it.
	Interface string
	Addrs     proto.Addrs
	Mesh      proto.Mesh
	MTU       int
	// Table is the routing table to use; zero means DefaultTable.
	Table int
	// Routes are networks behind peers to route to the device. They lie outside the mesh's ranges.
	Routes []netip.Prefix
	Exit   Exit
	Serve  Serve
}

// Network is the host's network as a node needs it. All methods are safe for concurrent use.
type Network interface {
	// Up first guards the host against bypass and then opens the way into the mesh. Calling it again is cheap, and applies
	// changes to the config. On an error nothing passes: the guard stays in place as far as it could be set.
	Up(Config) error
	// Down undoes everything that Up, or a crashed run, has set. Up may be called again afterwards.
	Down() error
	// Problems describes in sentences what does not work although Up succeeded, such as a kernel without IPv6.
	Problems() []string
	// Endpoints returns the underlay addresses at which peers may reach this host, likeliest first, at most MaxEndpoints.
	Endpoints(proto.Mesh) ([]netip.Addr, error)
	// Gateway returns the router of the IPv4 default route, and our address on its network. Both are invalid if there is none.
	Gateway() (gateway, local netip.Addr, err error)
	// Gateway6 returns the router of the IPv6 default route, usually by its link-local address, and a global address that this
	// host has there, a permanent one if possible. Both are invalid if there is none.
	Gateway6() (gateway, local netip.Addr, err error)
	// Clashes describes other users of the mesh's ranges on this host, one sentence each, at most MaxClashes.
	Clashes(proto.Mesh) ([]string, error)
	// Watch reports changes to what Endpoints depends on: the first at once, further ones batched over FoldInterval. The channel
	// is closed when the context ends or the kernel stops reporting changes.
	Watch(context.Context) (<-chan struct{}, error)
	// Close calls Down and releases the Network. It may be called more than once.
	Close() error
}

// withDefaults fills in omitted fields.
func (c Config) withDefaults() Config {
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	return c
}

// Validate reports whether the config is acceptable. It is called before anything is changed.
func (c Config) Validate() error {
	if !validInterface(c.Interface) {
		return fmt.Errorf("interface %q: want 1 to 15 letters, digits, '.', '_' or '-', the first a letter", c.Interface)
	}
	m := c.Mesh
	if !m.V4.IsValid() || !m.V4.Addr().Is4() || m.V4 != m.V4.Masked() || m.V4.Bits() < 8 {
		return fmt.Errorf("mesh's IPv4 range %v: want a masked prefix of 8 bits or more", m.V4)
	}
	if !m.V6.IsValid() || !m.V6.Addr().Is6() || m.V6.Addr().Is4In6() || m.V6 != m.V6.Masked() || m.V6.Bits() < 16 {
		return fmt.Errorf("mesh's IPv6 range %v: want a masked prefix of 16 bits or more", m.V6)
	}
	for _, p := range []netip.Prefix{m.V4, m.V6} {
		if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("mesh's range %v: loopback, link-local and multicast ranges cannot be a mesh's", p)
		}
	}
	if !m.V4.Contains(c.Addrs.V4) || !m.V6.Contains(c.Addrs.V6) {
		return fmt.Errorf("node's addresses %v and %v: not within the mesh's ranges %v and %v",
			c.Addrs.V4, c.Addrs.V6, m.V4, m.V6)
	}
	if c.MTU < 1280 || c.MTU > 65535 {
		return fmt.Errorf("MTU %d: want 1280 to 65535 (IPv6 needs 1280)", c.MTU)
	}
	// 253 to 255 are the kernel's own tables, 0 means unspecified.
	if c.Table < 1 || c.Table > 1<<31-1 || c.Table >= 253 && c.Table <= 255 {
		return fmt.Errorf("routing table %d: want one that is not the kernel's own", c.Table)
	}
	return errors.Join(
		checkNetworks("route", c.Routes, MaxRoutes, 1, c.Mesh),
		checkNetworks("served network", c.Serve.Routes, MaxServed, 0, c.Mesh))
}

// validInterface is stricter than the kernel, since the name becomes part of the name of an nftables table that people type.
func validInterface(s string) bool {
	if len(s) < 1 || len(s) > 15 {
		return false
	}
	for i, r := range []byte(s) {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		other := r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
		if !letter && (i == 0 || !other) {
			return false
		}
	}
	return true
}
