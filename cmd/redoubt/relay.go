package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/join"
)

// relayFlags are the flags of `redoubt relay`.
type relayFlags struct {
	code                                     upFlags
	state, listen, region, metrics, logLevel string
	port                                     uint16
	addresses, urls                          []string
}

func relayCommand(p program) *cobra.Command {
	var f relayFlags
	cmd := &cobra.Command{
		Use:   "relay [CODE | -]",
		Short: "Run a relay for nodes that cannot reach each other directly",
		Long: "Runs a relay on this machine, which does not become a node of the mesh. The join\n" +
			"code comes from `redoubt-coordinator token create --relay`, and is needed once.\n" +
			"Nodes reach the relay by UDP and, at each --url, by TLS. It cannot read what it\n" +
			"forwards, and forwards only between nodes that the policy connects.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), p, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.state, "state", "/var/lib/redoubt-relay", "`DIR` with this relay's keys")
	flags.StringVar(&f.code.codeFile, "code-file", "", "`FILE` that holds the join code")
	flags.StringVar(&f.code.hostname, "hostname", "", "`NAME` of the relay (default the machine's host name)")
	flags.Uint16Var(&f.port, "listen-port", 3478, "UDP `PORT`")
	flags.StringVar(&f.listen, "listen", "", "`ADDR`:PORT for streams, such as :443 (default none)")
	flags.StringArrayVar(&f.urls, "url", nil, "`URL` at which nodes open streams (https://HOST[:PORT]; may be repeated)")
	flags.StringArrayVar(&f.addresses, "address", nil, "`ADDRESS` at which nodes reach the UDP port (may be repeated; default: the hosts of --url, or the address that the coordinator sees)")
	flags.StringVar(&f.region, "region", "", "`NAME` of the relay's location, for display")
	flags.StringVar(&f.metrics, "metrics", "", "`ADDR` to serve Prometheus metrics on; just a port means loopback")
	flags.StringVar(&f.logLevel, "log-level", "info", "`LEVEL` to log: debug, info, warn or error")
	return cmd
}

// config checks all flags before run changes anything.
func (f relayFlags) config(p program, args []string) (agent.RelayConfig, error) {
	cfg := agent.RelayConfig{
		StateDir: f.state, Hostname: f.code.hostname, Program: version(), Region: f.region, Port: f.port, URLs: f.urls,
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return cfg, fmt.Errorf("--log-level %q: want debug, info, warn or error", f.logLevel)
	}
	cfg.Log = slog.New(slog.NewTextHandler(p.err, &slog.HandlerOptions{Level: level}))
	if (f.listen == "") != (len(f.urls) == 0) {
		return cfg, fmt.Errorf("give --listen and --url together: where the relay accepts streams, and where nodes reach it")
	}
	for _, s := range f.addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return cfg, fmt.Errorf("--address %s: want an IP address", s)
		}
		cfg.Addresses = append(cfg.Addresses, a)
	}
	for _, u := range f.urls {
		if err := join.CheckURL(u); err != nil {
			return cfg, fmt.Errorf("--url: %w", err)
		}
	}
	text, err := f.code.code(p, args)
	if err != nil || text == "" {
		return cfg, err
	}
	code, err := join.Parse(text)
	cfg.Join = &state.Join{URLs: code.URLs, Root: code.Root, Secret: code.Secret}
	return cfg, err
}

func (f relayFlags) run(ctx context.Context, p program, args []string) error {
	cfg, err := f.config(p, args)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if cfg.Hostname == "" {
		if cfg.Hostname, err = os.Hostname(); err != nil {
			return &exitError{exitFalse, err}
		}
	}
	if f.listen != "" {
		if cfg.Listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.listen); err != nil {
			return &exitError{exitUsage, fmt.Errorf("--listen: %w", err)}
		}
		defer cfg.Listener.Close()
	}
	metrics, err := listenMetrics(ctx, f.metrics)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--metrics: %w", err)}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg.Registry = registry
	stop := serve(metrics, registry, cfg.Log)
	defer stop()
	tuneMemory()
	if err := agent.RunRelay(ctx, cfg); err != nil {
		return &exitError{exitFalse, err}
	}
	return nil
}
