package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// relayOptions are the flags for the relay in the coordinator.
type relayOptions struct {
	on        bool
	listen    string
	given     bool // --relay-listen was given
	addresses []string
	region    string
}

// draining is how long nodes have to move to another relay when the coordinator stops.
const draining = 500 * time.Millisecond

func (o *relayOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.on, "relay", true, "include a relay for nodes that cannot reach each other directly, by UDP and on the port of --listen")
	f.StringVar(&o.listen, "relay-listen", ":3478", "UDP `PORT` of the relay, as :PORT; empty for streams only")
	f.StringArrayVar(&o.addresses, "relay-address", nil, "`ADDRESS` at which nodes reach the relay by UDP (may be repeated; default: the addresses of the --url hosts)")
	f.StringVar(&o.region, "relay-region", "", "`NAME` of the relay's location, for display")
}

// embedded is the relay that runs inside the coordinator.
type embedded struct {
	server *relay.Server
	watch  interface{ Close() }
	info   proto.Relay
	// drained makes drain do its work once.
	drained sync.Once
}

// port parses the port of --relay-listen.
func (o *relayOptions) port() (uint16, error) {
	_, text, err := net.SplitHostPort(o.listen)
	if err != nil {
		text = o.listen
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("--relay-listen %s: want :PORT", o.listen)
	}
	return uint16(port), nil
}

// startRelay starts the relay and announces it to the nodes.
func (d *daemonRun) startRelay(ctx context.Context, o relayOptions, urls []string, registry prometheus.Registerer) error {
	secret, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		return err
	}
	info := proto.Relay{ID: d.co.RelayID(), Name: nameOf(urls), Region: o.region, Key: secret.Public(), URLs: urls}
	for _, s := range o.addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--relay-address %s: want an IP address", s)
		}
		info.UDP = append(info.UDP, a)
	}
	admission := d.co.Admission()
	server, err := relay.NewServer(relay.ServerConfig{
		ID: info.ID, Secret: secret, Permit: admission, Rand: rand.Reader, Log: d.log, Registry: registry,
	})
	if err != nil {
		return err
	}
	d.relay = &embedded{server: server, watch: admission.Watch(server.Recheck), info: info}
	if o.listen != "" {
		if err := d.relay.listen(d, o); err != nil {
			return err
		}
	}
	if err := d.relay.info.Validate(); err != nil {
		return fmt.Errorf("the relay cannot be reached: %w; give --url or --relay-address, or --relay=false", err)
	}
	d.log.Info("relay serves", "relay", info.ID, "udp", d.relay.info.UDPPort)
	return d.co.SetRelay(ctx, d.relay.info)
}

// listen opens the UDP port. If the default port is taken by another program, the relay serves streams only.
func (e *embedded) listen(d *daemonRun, o relayOptions) error {
	port, err := o.port()
	if err != nil {
		return err
	}
	e.info.UDPPort, err = e.server.ServeUDP(nil, port)
	if errors.Is(err, syscall.EADDRINUSE) && !o.given {
		d.log.Warn("the relay serves streams only: another program uses its UDP port; give another one with --relay-listen", "port", port)
		return nil
	}
	return err
}

// drain asks nodes to move to another relay, and waits for up to draining.
func (e *embedded) drain() {
	e.drained.Do(func() { e.server.Drain(draining) })
}

// close drains and stops the relay.
func (e *embedded) close() {
	e.watch.Close()
	e.drain()
	_ = e.server.Close()
}

func nameOf(urls []string) string {
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil && u.Hostname() != "" {
			return u.Hostname()
		}
	}
	return "coordinator"
}
