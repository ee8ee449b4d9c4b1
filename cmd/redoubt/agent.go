package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/posture"
)

// agentFlags are the flags of `redoubt agent`.
type agentFlags struct {
	state, tun, operator, metrics, logLevel string
	port                                    uint16
	router                                  bool

	tpm, deviceKey, eventLog, certificate, certificateKey string

	edr []string
}

func agentCommand(p program) *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the daemon",
		Long: "Runs the daemon that keeps this machine in the mesh. It must be allowed to\n" +
			"change the host's network: as root, or with CAP_NET_ADMIN and CAP_NET_RAW.\n" +
			"The systemd unit redoubt.service runs this command.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), p, socket(cmd)) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.state, "state", "/var/lib/redoubt", "`DIR` with this node's keys and state")
	flags.StringVar(&f.tun, "tun", agent.DefaultInterface, "`NAME` of the network interface to create")
	flags.Uint16Var(&f.port, "listen-port", 0, "UDP `PORT` for other nodes (default any)")
	flags.BoolVar(&f.router, "port-mapping", true, "ask the router for a port by PCP, NAT-PMP or UPnP")
	flags.StringVar(&f.tpm, "tpm", device.Auto, "TPM: auto, off, a `DEVICE`, or unix:PATH for a software TPM")
	flags.StringVar(&f.deviceKey, "device-key", agent.KeyAuto, "`WHERE` to create the device key: tpm, file, or auto (the TPM if it works)")
	flags.StringVar(&f.eventLog, "event-log", "", "`FILE` with the measured-boot log (default the system's)")
	flags.StringVar(&f.certificate, "x509-cert", "", "`FILE` with a company certificate to join with (PEM)")
	flags.StringVar(&f.certificateKey, "x509-key", "", "`FILE` with that certificate's key (PEM)")
	flags.StringArrayVar(&f.edr, "edr", nil, "`NAME=PROGRAM[:UNIT]` of an endpoint detection product, for posture:edr (may be repeated)")
	flags.StringVar(&f.operator, "operator", "", "`USER` (name or number) who may run up and down besides root")
	flags.StringVar(&f.metrics, "metrics", "", "`ADDR` to serve Prometheus metrics on; just a port means loopback")
	flags.StringVar(&f.logLevel, "log-level", "info", "`LEVEL` to log: debug, info, warn or error")
	return cmd
}

// run checks all flags before it changes anything, then runs the agent until ctx ends.
func (f agentFlags) run(ctx context.Context, p program, socket string) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return &exitError{exitUsage, fmt.Errorf("--log-level %q: want debug, info, warn or error", f.logLevel)}
	}
	access, err := localapi.Operator(f.operator)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--operator: %w", err)}
	}
	var guards []posture.Guard
	for _, text := range f.edr {
		g, err := posture.ParseGuard(text)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--edr %w", err)}
		}
		guards = append(guards, g)
	}
	metrics, err := listenMetrics(ctx, f.metrics)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--metrics: %w", err)}
	}
	log := slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: level}))
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	serveMetrics := serve(metrics, registry, log)
	defer serveMetrics()
	listener, err := localapi.Listen(socket)
	if err != nil {
		return &exitError{exitFalse, err}
	}
	tuneMemory()
	a, err := agent.New(agent.Config{
		StateDir: f.state, Interface: f.tun, ListenPort: f.port, Listener: listener, Access: access,
		TPM: f.tpm, DeviceKey: f.deviceKey, EventLog: f.log(), Certificate: f.certificate, CertificateKey: f.certificateKey,
		LeaveRouter: !f.router, Program: version(), Guards: guards, Log: log, Registry: registry,
	})
	if err != nil {
		return &exitError{exitFalse, errors.Join(err, listener.Close())}
	}
	stopNotify := notify(ctx, a, log)
	defer stopNotify()
	if err := a.Run(ctx); err != nil {
		return &exitError{exitFalse, err}
	}
	return nil
}

// log returns the path of the measured-boot event log. The system's log describes the system's TPM only.
func (f agentFlags) log() string {
	if f.eventLog == "" && !device.InSoftware(f.tpm) {
		return device.SystemEventLog
	}
	return f.eventLog
}

// listenMetrics accepts ADDR:PORT, or a bare port, which means loopback. It returns nil if addr is empty.
func listenMetrics(ctx context.Context, addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	if !strings.Contains(addr, ":") {
		addr = ":" + addr
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, port))
}

// serve serves the metrics until the returned function is called.
func serve(l net.Listener, registry *prometheus.Registry, log *slog.Logger) (stop func()) {
	if l == nil {
		return func() {}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics ended", "err", err)
		}
	}()
	return func() {
		_ = server.Close() // it can only fail to close the listener, which is no longer needed
		<-done
	}
}

// notify tells systemd when the agent is ready, that it is alive as long as it responds, and that it is stopping.
func notify(ctx context.Context, a *agent.Agent, log *slog.Logger) (stop func()) {
	say := func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("systemd is not told", "err", err)
		}
	}
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer say(daemon.SdNotifyStopping)
		select {
		case <-ctx.Done():
			return
		case <-a.Running():
		}
		say(daemon.SdNotifyReady)
		if every == 0 {
			<-ctx.Done()
			return
		}
		t := time.NewTicker(every / 3)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if a.Answers(ctx) {
				say(daemon.SdNotifyWatchdog)
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
