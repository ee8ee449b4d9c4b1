package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/agent/echo"
	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/meshtime"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
)

// DefaultInterface is the TUN device's name.
const DefaultInterface = "redoubt0"

// Config configures an agent.
type Config struct {
	StateDir   string
	Interface  string // empty: DefaultInterface
	ListenPort uint16 // UDP; 0: any
	// Listener is where local programs reach the agent, which owns it; nil means that they cannot.
	Listener net.Listener
	// Access says which local programs may make changes.
	Access   localapi.Access
	Hostname string // the name to ask for if Up gives none; empty: the machine's
	// TPM says where the machine's TPM is: device.Auto, device.Off, a device file or unix:PATH; empty means off.
	TPM string
	// DeviceKey says where a device key is created: KeyAuto, KeyTPM or KeyFile; empty means KeyAuto.
	DeviceKey string
	// EventLog is the file with the measured boot log; empty means none.
	EventLog string
	// Certificate and CertificateKey are PEM files with a company-issued certificate and its key; empty means none.
	Certificate, CertificateKey string
	// LeaveRouter disables port mapping on the router.
	LeaveRouter bool
	// Guards are endpoint protection products to look for, in addition to the known ones.
	Guards  []posture.Guard
	Program string // version of the program
	Log     *slog.Logger
	// Registry receives the metrics; nil disables them.
	Registry prometheus.Registerer
	Edges    Edges
}

// Edges is everything outside the agent. Whatever is left out is filled in with the real implementation.
type Edges struct {
	Clock meshtime.Clock
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy returns the proxy through which to reach a server of the mesh. If Dial is given, nil means no proxy.
	Proxy func(server *url.URL) (*url.URL, error)
	// Resolve finds the addresses of a host. If Dial is given, nil leaves names to Dial.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	OpenTUN func(name string, mtu int) (tun.Device, error)
	NewBind func(bind.Config) *bind.Bind
	Network osnet.Network
	// Router configures port mapping on the IPv4 router; if Dial is given, nil means no port mapping.
	Router *portmap.Config
	// Router6 configures port mapping on the IPv6 router, which is a firewall.
	Router6 *portmap.Config
	// ServeUAPI shows the engine's counters to wg. If nil, they are not shown when OpenTUN is given, and shown by the real
	// implementation otherwise.
	ServeUAPI func(name string, e wg.Engine) (Closer, error)
	OpenPing  func(src netip.Addr) (Pinger, error)
	// Posture is where facts about this machine come from. If nil, there are none when OpenTUN is given, and they come from
	// the machine otherwise.
	Posture *posture.Source
	// Disk is called before each step that changes the state directory; if it returns an error, the step fails with it. May
	// be nil.
	Disk func(step string) error
}

// Closer is the interface of things that can be closed.
type Closer interface{ Close() error }

// Pinger sends echo requests from one of this host's addresses.
type Pinger interface {
	// Ping waits for the reply until the context ends; echo.ErrLost means that none came.
	Ping(ctx context.Context, dst netip.Addr) (time.Duration, error)
	Close() error
}

// complete fills in defaults and rejects invalid settings.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.StateDir == "" {
		return errors.New("no state directory: give the directory of the node's keys with --state DIR")
	}
	if c.Interface == "" {
		c.Interface = DefaultInterface
	}
	if len(c.Interface) > 15 || strings.ContainsAny(c.Interface, "/%: \t\n") {
		return fmt.Errorf("interface %.40q: want a name of at most 15 characters, such as %s", c.Interface, DefaultInterface)
	}
	if c.Hostname == "" {
		name, err := os.Hostname()
		if err != nil || name == "" {
			name = "node"
		}
		c.Hostname = name
	}
	if err := c.completeAttestation(); err != nil {
		return err
	}
	if c.Edges.Posture == nil {
		c.Edges.Posture = &posture.Source{}
		if c.Edges.OpenTUN == nil {
			*c.Edges.Posture = posture.Local(posture.Config{
				Interface: c.Interface, Guards: c.Guards, Memory: posture.File(filepath.Join(c.StateDir, "posture.json")),
			})
		}
	}
	if err := c.Edges.complete(c.Log); err != nil {
		return err
	}
	if c.LeaveRouter {
		c.Edges.Router, c.Edges.Router6 = nil, nil
	}
	return nil
}

func (e *Edges) complete(log *slog.Logger) error {
	real := e.Dial == nil
	if e.ServeUAPI == nil {
		e.ServeUAPI = func(name string, engine wg.Engine) (Closer, error) { return wg.ServeUAPI(name, engine) }
		if e.OpenTUN != nil {
			e.ServeUAPI = nil
		}
	}
	if e.Clock == nil {
		e.Clock = meshtime.System()
	}
	if real {
		e.Dial = osnet.Dialer().DialContext
		if e.Resolve == nil {
			e.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			}
		}
		if e.Proxy == nil {
			e.Proxy = outward.Environment
		}
	}
	if e.OpenTUN == nil {
		e.OpenTUN = tun.Open
	}
	if e.NewBind == nil {
		e.NewBind = bind.New
	}
	if e.OpenPing == nil {
		e.OpenPing = func(src netip.Addr) (Pinger, error) { return echo.Open(src) }
	}
	if e.Network == nil {
		n, err := osnet.New(log)
		if err != nil {
			return err
		}
		e.Network = n
	}
	if real && e.Router == nil {
		router, router6 := portmap.System(e.Network.Gateway), portmap.System(e.Network.Gateway6)
		e.Router, e.Router6 = &router, &router6
	}
	return nil
}
