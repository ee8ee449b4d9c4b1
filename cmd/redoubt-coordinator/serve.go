package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	listen       string
	urls         []string
	mesh         string
	domain       string
	metrics      string
	tpmRoots     string
	x509Roots    string
	lifetime     time.Duration
	intermediate time.Duration
	level        slog.Level
	relay        relayOptions
}

func (p *program) serve() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the coordinator", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.relay.given = cmd.Flags().Changed("relay-listen")
			return p.runServe(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":443", "`ADDR`:PORT for agents")
	f.StringArrayVar(&o.urls, "url", nil, "`URL` at which agents reach this coordinator (https://HOST[:PORT]; may be repeated)")
	f.StringVar(&o.mesh, "range", "", "IPv4 `PREFIX` of the mesh, chosen at the first start (default a random /16 of 100.64.0.0/10)")
	f.StringVar(&o.domain, "domain", "", "DNS `DOMAIN` of the nodes' names, chosen at the first start (default "+directory.DefaultDomain+")")
	f.StringVar(&o.metrics, "metrics", "", "`ADDR` to serve Prometheus metrics on; just a port means loopback")
	f.DurationVar(&o.lifetime, "cert-lifetime", issuer.NodeLifetime, "lifetime of node certificates")
	f.DurationVar(&o.intermediate, "intermediate-lifetime", issuer.IntermediateLifetime, "lifetime of the intermediate certificate")
	f.StringVar(&o.tpmRoots, "tpm-roots", "", "`DIR` with PEM files of TPM vendors' CAs (default: TPMs are unverified)")
	f.StringVar(&o.x509Roots, "x509-roots", "", "`DIR` with PEM files of the CAs whose certificates machines may join with")
	o.relay.flags(f)
	f.TextVar(&o.level, "log-level", slog.LevelInfo, "`LEVEL` to log: debug, info, warn or error")
	return cmd
}

// daemonRun is a running coordinator with its listeners, relay and metrics server.
type daemonRun struct {
	co       *coordinator.Coordinator
	listener net.Listener
	admin    *api.Server
	metrics  *http.Server
	relay    *embedded // nil if disabled
	log      *slog.Logger
}

func (p *program) runServe(ctx context.Context, o serveOptions) error {
	log := slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: o.level}))
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	config := coordinator.Config{
		Data: p.data, URLs: o.urls, Domain: o.domain, NodeLifetime: o.lifetime, IntermediateLifetime: o.intermediate,
		TPMRoots: o.tpmRoots, X509Roots: o.x509Roots,
		Log: log, Registry: registry, Program: build().Version,
	}
	metrics, err := metricsAddress(o.metrics)
	if err != nil {
		return err
	}
	if o.mesh != "" {
		if config.Range, err = netip.ParsePrefix(o.mesh); err != nil {
			return fmt.Errorf("--range %s: want a range such as 100.87.0.0/16", o.mesh)
		}
	}
	// Listen first, because the default URL contains the port; but if the data directory is in use, report that error instead,
	// because it says more.
	listener, listenErr := (&net.ListenConfig{}).Listen(ctx, "tcp", o.listen)
	if listenErr == nil && len(config.URLs) == 0 {
		config.URLs = guessURL(listener, log)
	}
	d := &daemonRun{listener: listener, log: log}
	if o.relay.on {
		config.Relay = func(stream net.Conn, certificate []byte) error {
			return d.relay.server.ServeStream(stream, certificate)
		}
	}
	defer d.close()
	if d.co, err = coordinator.New(ctx, config); err != nil {
		return err
	}
	if listenErr != nil {
		return fmt.Errorf("--listen %s: %w", o.listen, listenErr)
	}
	if d.admin, err = api.Serve(p.socketPath(), d.co.Admin()); err != nil {
		return err
	}
	if o.relay.on {
		if err := d.startRelay(ctx, o.relay, config.URLs, registry); err != nil {
			return err
		}
	}
	if metrics != "" {
		if err := d.serveMetrics(ctx, metrics, registry); err != nil {
			return err
		}
	}
	p.announce(d)
	return d.run(ctx)
}

func (d *daemonRun) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside sync.WaitGroup
	beside.Go(func() { d.report(ctx) })
	beside.Go(func() { keepMemory(ctx) })
	// The coordinator carries the relay's streams, so it goes on until the relay has drained.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	beside.Go(func() {
		defer stop()
		<-ctx.Done()
		if d.relay != nil {
			d.relay.drain()
		}
	})
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	err := d.co.Run(serving, d.listener)
	cancel()
	beside.Wait()
	return err
}

// report notifies systemd: of health at the watchdog interval, if one is set, and of the end.
func (d *daemonRun) report(ctx context.Context) {
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }()
	var tick <-chan time.Time
	if every, err := daemon.SdWatchdogEnabled(false); err == nil && every > 0 {
		t := time.NewTicker(every / 3)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-tick:
			if d.co.Err() == nil {
				_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			}
		case <-d.co.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

func (d *daemonRun) close() {
	if d.metrics != nil {
		_ = d.metrics.Close()
	}
	if d.admin != nil {
		_ = d.admin.Close()
	}
	if d.relay != nil {
		d.relay.close()
	}
	if d.co != nil {
		_ = d.co.Close()
	}
	if d.listener != nil {
		d.listener.Close()
	}
}

func (d *daemonRun) serveMetrics(ctx context.Context, address string, registry *prometheus.Registry) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	d.metrics = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	go func() { _ = d.metrics.Serve(l) }()
	d.log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return nil
}

// metricsAddress completes a bare port with the loopback address.
func metricsAddress(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = "", s
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("--metrics %s: want a port or ADDRESS:PORT", s)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// guessURL derives a URL from the host name, for use without --url.
func guessURL(l net.Listener, log *slog.Logger) []string {
	host, err := os.Hostname()
	address, ok := l.Addr().(*net.TCPAddr)
	if err != nil || !ok {
		return nil
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if address.Port != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(address.Port))
	}
	log.Warn("no --url was given; join codes will contain this machine's host name", "url", "https://"+host)
	return []string{"https://" + host}
}

// announce logs what runs and, at the first start, prints what to do next.
func (p *program) announce(d *daemonRun) {
	mesh := d.co.Mesh()
	d.log.Info("coordinator serves", "mesh", mesh.ID, "listen", d.listener.Addr(), "admin", p.socketPath(), "data", p.data, "version", build().Version)
	if !d.co.First() {
		return
	}
	self := "redoubt-coordinator"
	if p.socket != "" {
		self += " --admin-socket " + p.socket
	} else if p.data != defaultData {
		self += " --data " + p.data
	}
	fmt.Fprintf(p.out, `A new mesh: %s
  addresses  %s and %s
  names      NAME.%s
  root       SHA-256 %X
  keys       %s/pki; keep a copy in a safe place, backups do not contain them

What to do next:
  let a machine join: create a join code here, and use it there
    %s token create --user you@example.com
    sudo redoubt up CODE
  say who may reach what (until then nothing passes): edit a copy of the example
    cp %s policy.hujson
    %s policy apply policy.hujson
`, mesh.ID, mesh.V4, mesh.V6, mesh.Domain, d.co.Fingerprint(), p.data, self, d.co.StarterPolicy(), self)
}
