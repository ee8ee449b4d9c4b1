package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func whyCommand(p program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why DST[:PORT]",
		Short: "Say whether a connection is allowed, and why",
		Long: "Says whether this node may connect to another one (given by name, id or address)\n" +
			"or, with --from, whether another one may connect to this node; by which rule of\n" +
			"the policy and, if not, what is missing. Without a port, it checks a ping. Exits\n" +
			"with 0 if the connection is allowed.",
		Args: cobra.ExactArgs(1),
	}
	protocol := cmd.Flags().String("proto", "", "tcp (the default with a port), udp, sctp, icmp or a `NUMBER`")
	from := cmd.Flags().String("from", "", "`SRC` of the connection: name, id or address (default this node)")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := question(args[0], *protocol, *from)
		if err != nil {
			return &exitError{exitUsage, err}
		}
		w, err := client(cmd).Why(cmd.Context(), r)
		if err != nil {
			return failed(cmd, err)
		}
		if *asJSON {
			err = printJSON(p.out, whyOf(w))
		} else {
			_, err = fmt.Fprint(p.out, explain(w, palette(p.colour)))
		}
		if err == nil && !w.GetAllowed() {
			return &exitError{exitFalse, nil}
		}
		return err
	}
	return cmd
}

// protocolNumbers maps the names of protocols to their numbers.
var protocolNumbers = map[string]uint32{
	"tcp": proto.ProtoTCP, "udp": proto.ProtoUDP, "sctp": proto.ProtoSCTP, "icmp": proto.ProtoICMP,
	"icmpv6": proto.ProtoICMPv6, "ipv6-icmp": proto.ProtoICMPv6, "gre": proto.ProtoGRE, "esp": proto.ProtoESP, "ah": proto.ProtoAH,
	"igmp": proto.ProtoIGMP, "dccp": proto.ProtoDCCP,
}

// question parses the arguments into a request.
func question(dst, protocol, from string) (*redoubtv1.WhyRequest, error) {
	host, port, ported, err := target(dst)
	if err != nil {
		return nil, err
	}
	r := &redoubtv1.WhyRequest{Destination: host, Source: from, Port: uint32(port)}
	switch number, named := protocolNumbers[strings.ToLower(protocol)]; {
	case named:
		r.Protocol = number
	case protocol == "" && ported:
		r.Protocol = proto.ProtoTCP
	case protocol == "":
	default:
		n, err := strconv.ParseUint(protocol, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("--proto %q: want tcp, udp, sctp, icmp or a number up to 255", protocol)
		}
		r.Protocol = uint32(n)
	}
	switch takes := proto.HasPorts(uint8(r.GetProtocol())); {
	case takes && !ported:
		return nil, fmt.Errorf("%s has ports: give one, as in %s:443", protocol, dst)
	case !takes && ported:
		return nil, fmt.Errorf("%s has no ports: ask about %s", protocol, host)
	}
	return r, nil
}

// target splits DST[:PORT]. An IPv6 address with a port must be in brackets.
func target(dst string) (host string, port uint16, ported bool, err error) {
	if a, err := netip.ParseAddr(strings.Trim(dst, "[]")); err == nil {
		return a.String(), 0, false, nil
	}
	at := strings.LastIndexByte(dst, ':')
	if at < 0 {
		if dst == "" {
			err = fmt.Errorf("want a name, an id or an address, optionally with :PORT")
		}
		return dst, 0, false, err
	}
	n, perr := strconv.ParseUint(dst[at+1:], 10, 16)
	host = strings.Trim(dst[:at], "[]")
	if perr != nil || host == "" {
		return "", 0, false, fmt.Errorf("%q: want NAME:PORT or ADDRESS:PORT with a port up to 65535, IPv6 addresses in brackets", dst)
	}
	return host, uint16(n), true, nil
}

// explain formats the answer for people.
func explain(w *redoubtv1.WhyResponse, c palette) string {
	var b strings.Builder
	verdict := c.bad("not allowed")
	if w.GetAllowed() {
		verdict = c.good("allowed")
	}
	fmt.Fprintf(&b, "%s: %s -> %s %s  (%s -> %s)\n", verdict, w.GetFrom(), w.GetTo(), w.GetService(), w.GetSource(), cmp.Or(w.GetDestination(), "?"))
	say := func(format string, args ...any) { b.WriteString(wrap(fmt.Sprintf(format, args...), "  ", "    ")) }
	rule := w.GetRule()
	switch rule.GetAction() {
	case "allow":
		say("by %s", place(rule))
	case "deny":
		say("denied by %s, which overrides all other rules", place(rule))
	case "monitor":
		say("only because %s monitors until %s, and does not enforce; otherwise: %s", place(rule),
			time.Unix(rule.GetUntil(), 0).UTC().Format(time.RFC3339), w.GetReason())
	default:
		say("%s", w.GetReason())
	}
	for _, m := range w.GetMissing() {
		may := "would allow it"
		if w.GetDestination() == "" {
			may = "may apply"
		}
		say("%s %s: %s", place(m), may, m.GetMissing())
	}
	if n := w.GetNearest(); n != nil {
		say("nearest: %s", place(n))
	}
	if v := w.GetPolicyVersion(); v != "" {
		say("policy version %s", v)
	}
	return b.String()
}

func place(r *redoubtv1.WhyRule) string {
	return fmt.Sprintf("%s (line %d of the policy)", r.GetPath(), r.GetLine())
}

// The types that `why --json` prints.
type (
	whyJSON struct {
		Allowed       bool          `json:"allowed"`
		Reason        string        `json:"reason"`
		Rule          *whyRuleJSON  `json:"rule"`
		Nearest       *whyRuleJSON  `json:"nearest"`
		Missing       []whyRuleJSON `json:"missing"`
		Direction     string        `json:"direction"`
		From          string        `json:"from"`
		To            string        `json:"to"`
		Source        string        `json:"source"`
		Destination   string        `json:"destination"`
		Service       string        `json:"service"`
		PolicyVersion string        `json:"policyVersion"`
	}
	whyRuleJSON struct {
		Path    string     `json:"path"`
		Line    int32      `json:"line"`
		Action  string     `json:"action"`
		Until   *time.Time `json:"until"`
		Missing string     `json:"missing"`
	}
)

func whyOf(w *redoubtv1.WhyResponse) whyJSON {
	rule := func(r *redoubtv1.WhyRule) *whyRuleJSON {
		if r == nil {
			return nil
		}
		return &whyRuleJSON{r.GetPath(), r.GetLine(), r.GetAction(), fromSeconds(r.GetUntil()), r.GetMissing()}
	}
	out := whyJSON{
		Allowed: w.GetAllowed(), Reason: w.GetReason(), Rule: rule(w.GetRule()), Nearest: rule(w.GetNearest()), Missing: []whyRuleJSON{},
		Direction: w.GetDirection(), From: w.GetFrom(), To: w.GetTo(), Source: w.GetSource(), Destination: w.GetDestination(),
		Service: w.GetService(), PolicyVersion: w.GetPolicyVersion(),
	}
	for _, m := range w.GetMissing() {
		out.Missing = append(out.Missing, *rule(m))
	}
	return out
}
