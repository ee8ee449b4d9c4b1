package packet

// Types and codes of ICMP and ICMPv6 messages.
const (
	icmpEchoReply     = 0
	icmpUnreachable   = 3
	icmpEchoRequest   = 8
	icmpTimeExceeded  = 11
	icmpParameter     = 12
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6Parameter    = 4
	icmp6EchoRequest  = 128
	icmp6EchoReply    = 129
	icmpTooBig        = 4  // code of icmpUnreachable
	icmpProhibited    = 13 // code of icmpUnreachable
	icmp6Prohibited   = 1  // code of icmp6Unreachable
	icmpHeaderLength  = 8
	icmp6ErrorHighest = 127
)

// IsEchoRequest reports whether p is an echo request.
func (p *Packet) IsEchoRequest() bool {
	return p.Proto == protoICMP && p.Type == icmpEchoRequest || p.Proto == protoICMPv6 && p.Type == icmp6EchoRequest
}

// IsEchoReply reports whether p is an echo reply.
func (p *Packet) IsEchoReply() bool {
	return p.Proto == protoICMP && p.Type == icmpEchoReply || p.Proto == protoICMPv6 && p.Type == icmp6EchoReply
}

// IsError reports whether p is an error about another packet, which it quotes: destination unreachable, packet too big, time
// exceeded or parameter problem. Source quench and redirect do not count: hosts should ignore them.
func (p *Packet) IsError() bool {
	switch p.Proto {
	case protoICMP:
		return p.Type == icmpUnreachable || p.Type == icmpTimeExceeded || p.Type == icmpParameter
	case protoICMPv6:
		return p.Type >= icmp6Unreachable && p.Type <= icmp6Parameter
	}
	return false
}

// isICMPReport reports whether p must not itself be answered by an ICMP error, known type or not (RFC 1122, RFC 4443).
func (p *Packet) isICMPReport() bool {
	switch p.Proto {
	case protoICMP:
		return !p.IsEchoRequest()
	case protoICMPv6:
		return p.Type <= icmp6ErrorHighest || p.IsEchoReply()
	}
	return false
}
