package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// routingFlags are the flags of `redoubt up` for routing beyond the mesh. A flag that is given changes the stored setting; one
// that is not given leaves it as it is.
type routingFlags struct {
	advertise                          []string
	advertiseExit, accept, lan, source bool
	exit                               string
}

func (f *routingFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.advertise, "advertise-routes", nil, "`NETWORKS` to route from the mesh, such as 10.1.0.0/16,10.2.0.0/16")
	flags.BoolVar(&f.advertiseExit, "advertise-exit-node", false, "offer this machine as an exit node")
	flags.BoolVar(&f.source, "snat-subnet-routes", true, "forwarded packets get this machine's address as source")
	flags.BoolVar(&f.accept, "accept-routes", false, "use the routes that other nodes serve (default no)")
	flags.StringVar(&f.exit, "exit-node", "", "`NODE` (name, id or address) through which to reach the Internet")
	flags.BoolVar(&f.lan, "exit-node-allow-lan", false, "reach the local network directly")
}

// change returns the settings given on the command line, in the environment or in the settings file; it returns nil if there are
// none.
func (f *routingFlags) change(cmd *cobra.Command) (*redoubtv1.RoutingChange, error) {
	c, given := &redoubtv1.RoutingChange{}, false
	for name, set := range map[string]func(){
		"advertise-routes":    func() { c.Advertise = &redoubtv1.RoutingChange_Prefixes{} },
		"advertise-exit-node": func() { c.AdvertiseExitNode = &f.advertiseExit },
		"snat-subnet-routes":  func() { c.Snat = &f.source },
		"accept-routes":       func() { c.Accept = &f.accept },
		"exit-node":           func() { c.ExitNode = &f.exit },
		"exit-node-allow-lan": func() { c.ExitNodeAllowLan = &f.lan },
	} {
		if cmd.Flags().Changed(name) {
			set()
			given = true
		}
	}
	if !given {
		return nil, nil
	}
	for _, text := range f.advertise {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("--advertise-routes %.60q: want networks such as 10.33.0.0/16", text)
		case p.Bits() == 0:
			return nil, fmt.Errorf("--advertise-routes %v: to offer an exit node, use --advertise-exit-node", p)
		case p != p.Masked():
			return nil, fmt.Errorf("--advertise-routes %v has bits set beyond the prefix length: did you mean %v?", p, p.Masked())
		}
		c.Advertise.Prefixes = append(c.Advertise.Prefixes, p.String())
	}
	return c, nil
}

const (
	all4, all6 = "0.0.0.0/0", "::/0"
	// most is how many routes the status lists for people.
	most = 12
)

// routingFields returns the lines of a status about routing beyond the mesh, as pairs of name and text.
func routingFields(r *redoubtv1.Routing, c palette) (out [][2]string) {
	var serves, waits, uses []string
	for _, o := range r.GetOffered() {
		if o.GetServed() {
			serves = append(serves, o.GetPrefix())
		} else {
			waits = append(waits, o.GetPrefix())
		}
	}
	if len(serves) > 0 {
		text := few(internet(serves))
		if !r.GetSnat() {
			text += ", keeping source addresses"
		}
		out = append(out, [2]string{"serves", text})
	}
	if len(waits) > 0 {
		out = append(out, [2]string{"offers", few(internet(waits)) + c.warn(" (not approved, or no rule covers it)")})
	}
	unused := 0
	for _, p := range r.GetRoutes() {
		switch {
		case p.GetPrefix() == all4 || p.GetPrefix() == all6:
		case p.GetUsed():
			uses = append(uses, p.GetPrefix()+" by "+fit(p.GetPeerName(), 30))
		default:
			unused++
		}
	}
	if len(uses) > 0 {
		out = append(out, [2]string{"routes", few(uses)})
	} else if unused > 0 && !r.GetAccept() {
		out = append(out, [2]string{"routes", fmt.Sprintf("none of the %d that peers serve (see `up --accept-routes`)", unused)})
	}
	if e := r.GetExitNode(); e != nil {
		out = append(out, [2]string{"exit node", exitNode(e, c)})
	}
	return out
}

func exitNode(e *redoubtv1.ExitNode, c palette) string {
	lan := ", the local network is cut off"
	if e.GetAllowLan() {
		lan = ", the local network is reached directly"
	}
	switch {
	case e.GetIpv4() && e.GetIpv6():
		return c.good(fit(e.GetPeerName(), 40)) + lan
	case e.GetIpv4():
		return c.warn(fit(e.GetPeerName(), 30)+" for IPv4 only, IPv6 is blocked") + lan
	case e.GetIpv6():
		return c.warn(fit(e.GetPeerName(), 30)+" for IPv6 only, IPv4 is blocked") + lan
	}
	return c.bad(fit(e.GetWanted(), 30)+" is not reachable, Internet traffic is blocked") + lan
}

// internet replaces the two default routes of an exit node by a name.
func internet(prefixes []string) []string {
	v4, v6 := slices.Contains(prefixes, all4), slices.Contains(prefixes, all6)
	out := slices.DeleteFunc(slices.Clone(prefixes), func(p string) bool { return p == all4 || p == all6 })
	switch {
	case v4 && v6:
		out = append(out, "the Internet")
	case v4:
		out = append(out, "the Internet by IPv4")
	case v6:
		out = append(out, "the Internet by IPv6")
	}
	return out
}

// few joins the first entries of a list, and says how many more there are.
func few(list []string) string {
	more := ""
	if n := len(list) - most; n > 0 {
		list, more = list[:most], fmt.Sprintf(" and %d more", n)
	}
	return strings.Join(list, ", ") + more
}

// The types of routing in JSON output.
type (
	routingJSON struct {
		Offered      []offeredJSON `json:"offered"`
		SNAT         bool          `json:"snat"`
		AcceptRoutes bool          `json:"acceptRoutes"`
		Routes       []routeJSON   `json:"routes"`
		ExitNode     *exitJSON     `json:"exitNode"`
	}
	offeredJSON struct {
		Prefix string `json:"prefix"`
		Served bool   `json:"served"`
	}
	routeJSON struct {
		Prefix string `json:"prefix"`
		PeerID string `json:"peerId"`
		Peer   string `json:"peer"`
		Used   bool   `json:"used"`
	}
	exitJSON struct {
		Wanted   string `json:"wanted"`
		PeerID   string `json:"peerId"`
		Peer     string `json:"peer"`
		IPv4     bool   `json:"ipv4"`
		IPv6     bool   `json:"ipv6"`
		AllowLAN bool   `json:"allowLan"`
	}
)

func routingOf(r *redoubtv1.Routing) routingJSON {
	out := routingJSON{Offered: []offeredJSON{}, SNAT: r.GetSnat(), AcceptRoutes: r.GetAccept(), Routes: []routeJSON{}}
	for _, o := range r.GetOffered() {
		out.Offered = append(out.Offered, offeredJSON{o.GetPrefix(), o.GetServed()})
	}
	for _, p := range r.GetRoutes() {
		out.Routes = append(out.Routes, routeJSON{p.GetPrefix(), p.GetPeerId(), p.GetPeerName(), p.GetUsed()})
	}
	if e := r.GetExitNode(); e != nil {
		out.ExitNode = &exitJSON{e.GetWanted(), e.GetPeerId(), e.GetPeerName(), e.GetIpv4(), e.GetIpv6(), e.GetAllowLan()}
	}
	return out
}
