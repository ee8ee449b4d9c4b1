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

// Config is what an agent is made with.
type Config struct {
	StateDir   string
	Interface  string // empty: DefaultInterface
	ListenPort uint16 // UDP; 0: any
	// Listener is where local programs reach the agent, which owns it; nil where none shall.
	Listener net.Listener
	// Access says which of them may change something.
	Access   localapi.Access
	Hostname string // what to be called where Up says nothing; empty: the machine's
	// TPM is where the machine's TPM is: device.Auto, device.Off, a device or unix:PATH; empty: off.
	TPM string
	// DeviceKey is where a device key is made: KeyAuto, KeyTPM or KeyFile; empty: KeyAuto.
	DeviceKey string
	// EventLog is the file with the log of measured boot; empty: none.
	EventLog string
	// Certificate and CertificateKey are files with a certificate of the company and its key, in PEM; empty: there is none.
	Certificate, CertificateKey string
	// LeaveRouter is not to ask the router for a port.
	LeaveRouter bool
	// Guards are programs that watch over the machine, beside those that are known.
	Guards  []posture.Guard
	Program string // version of the program
	Log     *slog.Logger
	// Registry takes the metrics; nil: nobody wants them.
	Registry prometheus.Registerer
	Edges    Edges
}

// Edges is the world as the agent sees it. What is left out is the real one.
type Edges struct {
	Clock meshtime.Clock
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy says by which proxy a server of the mesh is reached; where Dial is given, nil means by none.
	Proxy func(server *url.URL) (*url.URL, error)
	// Resolve finds the addresses of a host; where Dial is given, nil means that names are left to that.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	OpenTUN func(name string, mtu int) (tun.Device, error)
	NewBind func(bind.Config) *bind.Bind
	Network osnet.Network
	// Router is how a port is asked of the router; where Dial is given, nil means not at all.
	Router *portmap.Config
	// Router6 is how a port is asked of IPv6's router, which is a firewall.
	Router6 *portmap.Config
	// ServeUAPI shows the engine's counters to wg; nil: not at all where another edge is given, else the real one.
	ServeUAPI func(name string, e wg.Engine) (Closer, error)
	OpenPing  func(src netip.Addr) (Pinger, error)
	// Posture is where facts about this machine come from. Nil: nowhere where another edge is given, else from the machine.
	Posture *posture.Source
	// Disk is asked before each step that changes the state directory, and an error of it is the step's; nil: nobody is.
	Disk func(step string) error
}

// Closer can be closed.
type Closer interface{ Close() error }

// Pinger sends echoes from one of this host's addresses.
type Pinger interface {
	// Ping waits for the answer until the context ends; echo.ErrLost means that none came.
	Ping(ctx context.Context, dst netip.Addr) (time.Duration, error)
	Close() error
}

// complete fills in what was left out, and refuses what cannot be.
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
