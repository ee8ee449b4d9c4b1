package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/agent/netcheck"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func netcheckCommand(p program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netcheck",
		Short: "Examine this machine's network",
		Long: "Determines how others can reach this machine: the kind of NAT, external\n" +
			"addresses, whether UDP gets out, port mapping, the MTU and the distance to the\n" +
			"relays, and says what would help. It takes a few seconds. Without an agent it\n" +
			"needs a --stun server; any relay is one. Exits with 0 if peers can be reached,\n" +
			"even if only through a relay.",
		Args: cobra.NoArgs,
	}
	servers := cmd.Flags().StringSlice("stun", nil, "`HOST[:PORT]` of an additional STUN server")
	router := cmd.Flags().Bool("port-mapping", true, "without an agent, ask the router for a port, and release it")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := look(cmd, *servers, *router)
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(p.out, netcheckOf(r))
		} else {
			err = tell(p.out, r, palette(p.colour))
		}
		if err == nil && !r.Reaches() {
			return &exitError{exitFalse, nil}
		}
		return err
	}
	return cmd
}

// look asks the agent which servers to use, and then examines the network itself.
func look(cmd *cobra.Command, servers []string, router bool) (r netcheck.Report, err error) {
	ctx := cmd.Context()
	c, end := netcheck.System()
	defer func() { err = errors.Join(err, end()) }()
	if !router {
		c.PortMap, c.PortMap6 = nil, nil
	}
	u, err := client(cmd).Underlay(ctx, &redoubtv1.UnderlayRequest{})
	if err == nil {
		c.Ask(ctx, u)
	} else if err = failed(cmd, err); len(servers) == 0 {
		var exit *exitError
		if errors.As(err, &exit) && exit.code == exitNoAgent {
			exit.err = fmt.Errorf("%w; or give a --stun server to ask", exit.err)
		}
		return r, err
	}
	for _, s := range servers {
		if err := c.AskServer(ctx, s); err != nil {
			return r, &exitError{exitUsage, fmt.Errorf("--stun %s: %w", s, err)}
		}
	}
	return netcheck.Run(ctx, c), nil
}

// tell writes the report for people.
func tell(w io.Writer, r netcheck.Report, c palette) error {
	var b strings.Builder
	const column = 14
	for _, l := range r.Words() {
		b.WriteString(wrap(l.Text, fmt.Sprintf("%-*s", column, l.About), strings.Repeat(" ", column)))
	}
	if advice := r.Advice(); len(advice) > 0 {
		b.WriteString("\n" + c.warn("What would help:") + "\n")
		for _, a := range advice {
			b.WriteString(wrap(a, "- ", "  "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// The types that `netcheck --json` prints.
type (
	netcheckJSON struct {
		Kind        string          `json:"kind"`
		IPv4        familyJSON      `json:"ipv4"`
		IPv6        familyJSON      `json:"ipv6"`
		PortMapping portMappingJSON `json:"portMapping"`
		Firewall    portMappingJSON `json:"portMapping6"`
		MTU         *int            `json:"mtu"`
		Paths       []pathMTUJSON   `json:"paths"`
		Relays      []relayJSON     `json:"relays"`
		Advice      []string        `json:"advice"`
	}
	familyJSON struct {
		Mapped    []string `json:"mapped"`
		Mapping   string   `json:"mapping"`
		Filtering string   `json:"filtering"`
		Hairpin   string   `json:"hairpin"`
	}
	portMappingJSON struct {
		Protocol string `json:"protocol"`
		External string `json:"external"`
		Problem  string `json:"problem"`
	}
	relayJSON struct {
		Name   string   `json:"name"`
		Region string   `json:"region"`
		UDPms  *float64 `json:"udpMs"`
		TCPms  *float64 `json:"tcpMs"`
		MTU    *int     `json:"mtu"`
	}
	pathMTUJSON struct {
		Peer      string `json:"peer"`
		Path      string `json:"path"`
		Endpoint  string `json:"endpoint"`
		MTU       int    `json:"pathMtu"`
		Fragments bool   `json:"pathFragments"`
	}
)

func netcheckOf(r netcheck.Report) netcheckJSON {
	family := func(mapped []netip.AddrPort, mapping, filtering, hairpin fmt.Stringer) familyJSON {
		f := familyJSON{[]string{}, mapping.String(), filtering.String(), hairpin.String()}
		for _, a := range mapped {
			f.Mapped = append(f.Mapped, a.String())
		}
		return f
	}
	ms := func(d time.Duration) *float64 {
		if d == 0 {
			return nil
		}
		f := float64(d.Microseconds()) / 1000
		return &f
	}
	v4, v6 := r.STUN.V4, r.STUN.V6
	out := netcheckJSON{
		Kind:        string(r.Kind),
		IPv4:        family(v4.Mapped(), v4.Mapping, v4.Filtering, v4.Hairpin),
		IPv6:        family(v6.Mapped(), v6.Mapping, v6.Filtering, v6.Hairpin),
		PortMapping: mappingOf(string(r.Router.Protocol), r.Router.External, r.Router.Problem),
		Firewall:    mappingOf(string(r.Router6.Protocol), r.Router6.External, r.Router6.Problem), MTU: known(r.MTU),
		Paths: []pathMTUJSON{}, Relays: []relayJSON{}, Advice: append([]string{}, r.Advice()...),
	}
	for _, p := range r.Paths {
		out.Paths = append(out.Paths, pathMTUJSON{p.Peer, p.Way, p.Endpoint, p.MTU, p.Fragments})
	}
	for _, x := range r.Relays {
		out.Relays = append(out.Relays, relayJSON{x.Name, x.Region, ms(x.UDP), ms(x.TCP), known(x.MTU)})
	}
	return out
}

// known returns nil if the MTU is unknown.
func known(mtu int) *int {
	if mtu == 0 {
		return nil
	}
	return &mtu
}

func mappingOf(protocol string, external netip.AddrPort, problem string) portMappingJSON {
	m := portMappingJSON{Protocol: protocol, Problem: problem}
	if external.IsValid() {
		m.External = external.String()
	}
	return m
}
