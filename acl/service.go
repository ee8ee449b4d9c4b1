package acl

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// protocols maps the names that policies may use to IP protocols.
var protocols = map[string]uint8{
	"icmp": proto.ProtoICMP, "igmp": proto.ProtoIGMP, "ipv4": proto.ProtoIPIP, "ip-in-ip": proto.ProtoIPIP,
	"tcp": proto.ProtoTCP, "egp": proto.ProtoEGP, "igp": proto.ProtoIGP, "udp": proto.ProtoUDP, "dccp": proto.ProtoDCCP,
	"gre": proto.ProtoGRE, "esp": proto.ProtoESP, "ah": proto.ProtoAH, "icmpv6": proto.ProtoICMPv6,
	"ipv6-icmp": proto.ProtoICMPv6, "sctp": proto.ProtoSCTP, "fc": 133,
}

// unnamed are the protocols of a rule that names none.
var unnamed = []uint8{proto.ProtoICMP, proto.ProtoTCP, proto.ProtoUDP, proto.ProtoICMPv6}

// ProtocolName returns the name of an IP protocol, or its number.
func ProtocolName(protocol uint8) string {
	best := ""
	for name, n := range protocols {
		if n == protocol && (best == "" || len(name) < len(best) || len(name) == len(best) && name < best) {
			best = name
		}
	}
	return cmp.Or(best, strconv.Itoa(int(protocol)))
}

// ParseProtocol parses a name or a number from 0 to 255.
func ParseProtocol(s string) (uint8, error) {
	if n, ok := protocols[strings.ToLower(s)]; ok {
		return n, nil
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && strconv.FormatUint(n, 10) == s {
		return uint8(n), nil
	}
	if near := nearest(s, protocols); near != "" {
		return 0, fmt.Errorf("protocol %s is not known; did you mean %q?", quote(s), near)
	}
	return 0, fmt.Errorf("protocol %s is not known; use a name such as tcp, udp or icmp, or a number from 0 to 255", quote(s))
}

// portRange is an inclusive range of ports.
type portRange struct{ first, last uint16 }

var allPorts = []portRange{{0, math.MaxUint16}}

// parsePorts parses "*", "22", "80,443" or "1-9". The result for "*" is allPorts.
func parsePorts(s string) ([]portRange, error) {
	if s == "*" {
		return allPorts, nil
	}
	var out []portRange
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := parsePort(first)
		if err != nil {
			return nil, err
		}
		b, err := parsePort(last)
		if err != nil {
			return nil, err
		}
		if a > b {
			return nil, fmt.Errorf("the range of ports %s begins after its end; write %d-%d", quote(part), b, a)
		}
		out = append(out, portRange{a, b})
	}
	return out, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%s is not a port; use *, a number from 1 to 65535, a range such as 80-90, or several with commas", quote(s))
	}
	if n == 0 {
		return 0, fmt.Errorf("0 is not a port; use *, or a number from 1 to 65535")
	}
	return uint16(n), nil
}

// services returns the services of the ports with the named protocols, or with the unnamed ones if there are none. If ports
// are given, those of the unnamed protocols that have no ports are still allowed as a whole.
func services(named []uint8, ports []portRange) ([]proto.Service, error) {
	if len(named) == 0 {
		named = unnamed
	} else if !slices.Equal(ports, allPorts) {
		for _, n := range named {
			if !proto.HasPorts(n) {
				return nil, fmt.Errorf("%s has no ports; write * for the ports, or name tcp, udp, sctp or no protocol", ProtocolName(n))
			}
		}
	}
	var out []proto.Service
	for _, n := range named {
		if !proto.HasPorts(n) {
			out = append(out, proto.Service{Proto: n, First: 0, Last: math.MaxUint16})
			continue
		}
		for _, r := range ports {
			out = append(out, proto.Service{Proto: n, First: r.first, Last: r.last})
		}
	}
	return mergeServices(out), nil
}

// mergeServices sorts services and merges those that overlap or adjoin.
func mergeServices(in []proto.Service) []proto.Service {
	slices.SortFunc(in, func(a, b proto.Service) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && out[n-1].Proto == s.Proto && int(s.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, s.Last)
			continue
		}
		out = append(out, s)
	}
	return slices.Clip(out)
}

// grantServices parses one entry of a grant's ip: "*", "443", "80-90", "tcp:443" or "icmp:*".
func grantServices(s string) ([]proto.Service, error) {
	protocol, ports, hasProtocol := strings.Cut(s, ":")
	if !hasProtocol {
		if _, ok := protocols[s]; ok {
			return nil, fmt.Errorf("%s names no ports; write %q for all of it", quote(s), s+":*")
		}
		r, err := parsePorts(s)
		if err != nil {
			return nil, err
		}
		return services(nil, r)
	}
	n, err := ParseProtocol(protocol)
	if err != nil {
		return nil, err
	}
	r, err := parsePorts(ports)
	if err != nil {
		return nil, err
	}
	return services([]uint8{n}, r)
}
