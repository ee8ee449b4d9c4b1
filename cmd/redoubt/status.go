package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// statusFlags are the flags of `redoubt status`.
type statusFlags struct {
	json          *bool
	watch         bool
	tunnels       bool
	wireguardName string
}

func statusCommand(p program) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of this node and its peers",
		Long: "Shows this node, its coordinator, its peers and any problems. Exits with 1\n" +
			"unless the node is running; with --json, only if there is nothing to print.\n" +
			"--tunnels shows keys, sessions, handshakes and drops instead, --interface the\n" +
			"counters of any WireGuard interface.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.wireguardName != "":
				return f.wireguard(p)
			case f.watch:
				return f.follow(cmd, p)
			}
			r, err := client(cmd).Status(cmd.Context(), &redoubtv1.StatusRequest{})
			if err != nil {
				return failed(cmd, err)
			}
			return f.print(p, r.GetStatus())
		},
	}
	f.json = jsonFlag(cmd)
	cmd.Flags().BoolVar(&f.watch, "watch", false, "keep showing it until q is pressed")
	cmd.Flags().BoolVar(&f.tunnels, "tunnels", false, "show the WireGuard tunnels")
	cmd.Flags().StringVar(&f.wireguardName, "interface", "", "show the counters of the WireGuard interface `NAME`")
	return cmd
}

func (f statusFlags) print(p program, st *redoubtv1.Status) error {
	if *f.json {
		return printJSON(p.out, statusOf(st))
	}
	fmt.Fprint(p.out, f.render(st, time.Now(), palette(p.colour)))
	if st.GetState() != "running" {
		return &exitError{exitFalse, nil}
	}
	return nil
}

// render formats the part of a status that was asked for.
func (f statusFlags) render(st *redoubtv1.Status, now time.Time, c palette) string {
	if f.tunnels {
		return renderTunnels(st, now, c)
	}
	return render(st, now, c)
}

// render formats a status for people, in 80 columns.
func render(st *redoubtv1.Status, now time.Time, c palette) string {
	var b strings.Builder
	field := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%s %s\n", c.dim(fmt.Sprintf("%-11s", name)), fmt.Sprintf(format, args...))
	}
	state := c.warn(st.GetState())
	switch st.GetState() {
	case "running":
		state = c.good(st.GetState())
	case "revoked", "locked", "expired", "quarantined":
		state = c.bad(st.GetState())
	}
	field("state", "%s", state)
	if n := st.GetNode(); n != nil {
		field("node", "%s  %s", fit(n.GetName()+"."+st.GetMeshDomain(), 50), n.GetId())
		field("addresses", "%s", strings.Join(n.GetAddresses(), "  "))
		field("identity", "%s", fit(who(n.GetUser(), n.GetTags()), 68))
		field("certificate", "%s", until(now, n.GetCertificateExpires(), c))
		field("machine", "attestation %s, device key in %s", n.GetAttestation(), keyHome(st.GetDeviceKey()))
	}
	if st.GetState() != "down" {
		coordinator := c.bad("not connected")
		if st.GetCoordinator().GetConnected() {
			coordinator = c.good("connected") + "  " + fit(st.GetCoordinator().GetUrl(), 40)
		}
		field("coordinator", "%s, last heard %s", coordinator, age(now, time.UnixMilli(st.GetCoordinator().GetLastHeard())))
	}
	if st.GetPolicyVersion() != "" {
		field("policy", "version %s", st.GetPolicyVersion())
	}
	if st.GetInterface() != "" {
		f := st.GetFilter()
		field("interface", "%s, UDP port %d", st.GetInterface(), st.GetListenPort())
		field("filter", "%d flows, %d packets allowed, %d denied", f.GetFlows(), f.GetAllowedPackets(), f.GetDeniedPackets())
	}
	for _, f := range routingFields(st.GetRouting(), c) {
		b.WriteString(wrap(f[1], c.dim(fmt.Sprintf("%-11s", f[0]))+" ", strings.Repeat(" ", 12)))
	}
	if len(st.GetPeers()) > 0 {
		b.WriteString("\n" + peerTable(st.GetPeers(), now))
		b.WriteString(peerPaths(st.GetPeers(), now, c))
	}
	if len(st.GetProblems()) > 0 {
		b.WriteString("\n" + c.warn("problems") + "\n")
		for _, problem := range st.GetProblems() {
			b.WriteString(wrap(problem, "  - ", "    "))
		}
	}
	return b.String()
}

// keyHome describes where the device key is stored.
func keyHome(where string) string {
	if where == "tpm" {
		return "the TPM"
	}
	return "a file"
}

func until(now time.Time, seconds int64, c palette) string {
	end := time.Unix(seconds, 0)
	if !now.Before(end) {
		return c.bad("expired " + span(now.Sub(end)) + " ago")
	}
	return "valid for " + span(end.Sub(now))
}

func who(user string, tags []string) string {
	switch {
	case user != "":
		return user
	case len(tags) > 0:
		return strings.Join(tags, ",")
	}
	return "-"
}

// peerPaths describes the path to each peer that packets are sent to: which it is, since when, and why it is not direct.
func peerPaths(peers []*redoubtv1.LocalPeer, now time.Time, c palette) string {
	var b strings.Builder
	for _, p := range peers {
		line := peerPath(p, now)
		if line == "" {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("\n" + c.dim("paths") + "\n")
		}
		b.WriteString(wrap(p.GetName()+": "+line, "  ", "    "))
	}
	return b.String()
}

// peerPath describes the path to a peer; it is empty if nothing was sent.
func peerPath(p *redoubtv1.LocalPeer, now time.Time) string {
	way, why := wayOf(p), p.GetPathWhy()
	if way.Path == "" {
		if cause := p.GetPathCause(); cause == "" || cause == "unsent" {
			return ""
		}
		return "no reply so far: " + why
	}
	line := way.String()
	if at := p.GetPathSince(); at > 0 {
		line += " for " + since(now, at)
	}
	if us := p.GetPathRttUs(); us > 0 {
		line += fmt.Sprintf(", round trip %.1f ms", float64(us)/1000)
	}
	if mtu := p.GetPathMtu(); mtu > 0 {
		line += fmt.Sprintf(", MTU %d", mtu)
		if p.GetPathFragments() {
			line += " in fragments"
		}
	}
	switch {
	case p.GetPathDoubt():
		line += "; in doubt: " + why
	case way.Path == "relay" && why != "":
		line += "; not direct: " + why
	}
	return line
}

func peerTable(peers []*redoubtv1.LocalPeer, now time.Time) string {
	rows := [][]string{{"PEER", "ADDRESS", "WHO", "PATH", "HANDSHAKE", "RX", "TX"}}
	for _, p := range peers {
		address, path := "", "-"
		if len(p.GetAddresses()) > 0 {
			address = p.GetAddresses()[0]
		}
		switch p.GetPath() {
		case "direct":
			path = "direct" // the endpoint is shown below the table
		case "relay":
			path = "relay " + p.GetEndpoint()
		}
		if p.GetPath() == "direct" && p.GetPathTransport() != "" {
			path += " (" + p.GetPathTransport() + ")"
		}
		rows = append(rows, []string{
			p.GetName(), address, who(p.GetUser(), p.GetTags()), path, age(now, time.UnixMilli(p.GetLastHandshake())),
			size(p.GetRxBytes()), size(p.GetTxBytes()),
		})
	}
	return table(rows, 3, 2, 0)
}

// follow prints the status whenever it changes.
func (f statusFlags) follow(cmd *cobra.Command, p program) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	stream, err := client(cmd).Watch(ctx, &redoubtv1.WatchRequest{})
	if err != nil {
		return failed(cmd, err)
	}
	defer func() { _ = stream.Close() }()
	next := func() (*redoubtv1.Status, error) {
		if stream.Receive() {
			return stream.Msg().GetStatus(), nil
		}
		return nil, stream.Err()
	}
	if p.colour && !*f.json {
		err = watch(ctx, cancel, p, f.render, next)
	} else {
		err = f.stream(p, next)
	}
	if cmd.Context().Err() != nil {
		return nil // the user stopped it
	}
	return failed(cmd, err)
}

// stream prints one status after another.
func (f statusFlags) stream(p program, next func() (*redoubtv1.Status, error)) error {
	for {
		st, err := next()
		if st == nil || err != nil {
			return err
		}
		if *f.json {
			if err := json.NewEncoder(p.out).Encode(statusOf(st)); err != nil {
				return fmt.Errorf("print: %w", err)
			}
			continue
		}
		fmt.Fprintln(p.out, f.render(st, time.Now(), palette(p.colour)))
	}
}
