package portmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Gateways listen for PCP and NAT-PMP on controlPort, and send announcements to clientPort.
const (
	controlPort = 5351
	clientPort  = 5350
)

const (
	versionNATPMP = 0
	versionPCP    = 2

	opAnnounce = 0 // PCP ANNOUNCE; in NAT-PMP, the request for the external address
	opMap      = 1 // PCP MAP; in NAT-PMP, the request to map a UDP port
	response   = 0x80

	protocolUDP = 17

	pcpHeader = 24
	pcpMap    = 60
)

// nonce ties PCP answers to their request, and a mapping to the client that made it.
type nonce [12]byte

// answer holds the relevant parts of a gateway's answer in either protocol.
type answer struct {
	version  uint8
	op       uint8
	result   uint16 // 0 means success
	epoch    uint32 // seconds since the gateway lost its mappings
	lifetime uint32 // seconds
	internal uint16
	external netip.AddrPort // port or address unset where the answer has none
	nonce    nonce
}

// errAnswer means that the bytes are not a gateway's answer.
var errAnswer = errors.New("no answer of a gateway")

// pcpRequest returns a MAP request. A lifetime of 0 deletes the mapping.
func pcpRequest(client netip.Addr, n nonce, port uint16, lifetime uint32, want netip.AddrPort) []byte {
	b := []byte{versionPCP, opMap, 0, 0}
	b = binary.BigEndian.AppendUint32(b, lifetime)
	ip := client.As16()
	b = append(b, ip[:]...)
	b = append(b, n[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, want.Port())
	switch {
	case want.Addr().IsValid():
		ip = want.Addr().As16()
	case client.Is4():
		ip = netip.IPv4Unspecified().As16() // any address
	default:
		ip = netip.IPv6Unspecified().As16()
	}
	return append(b, ip[:]...)
}

// appendNATPMP appends a NAT-PMP request for a mapping; appendAddrRequest appends one for the external address.
func appendNATPMP(b []byte, port, external uint16, lifetime uint32) []byte {
	b = append(b, versionNATPMP, opMap, 0, 0)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, lifetime)
}

func appendAddrRequest(b []byte) []byte { return append(b, versionNATPMP, opAnnounce) }

// parseAnswer parses an answer of either protocol, or an announcement.
func parseAnswer(b []byte) (answer, error) {
	if len(b) < 8 || b[1]&response == 0 {
		return answer{}, fmt.Errorf("%w: %d bytes", errAnswer, len(b))
	}
	a := answer{version: b[0], op: b[1] &^ response}
	switch a.version {
	case versionNATPMP:
		a.result, a.epoch = binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:])
		switch {
		case a.result != 0: // the rest may be missing
		case a.op == opAnnounce && len(b) == 12:
			a.external = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:])), 0)
		case a.op == opMap && len(b) == 16:
			a.internal = binary.BigEndian.Uint16(b[8:])
			a.external = netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(b[10:]))
			a.lifetime = binary.BigEndian.Uint32(b[12:])
		default:
			return answer{}, fmt.Errorf("%w: %d bytes for NAT-PMP's %d", errAnswer, len(b), a.op)
		}
	case versionPCP:
		if len(b) < pcpHeader || len(b)%4 != 0 || len(b) > 1100 {
			return answer{}, fmt.Errorf("%w: %d bytes of PCP", errAnswer, len(b))
		}
		a.result = uint16(b[3])
		a.lifetime, a.epoch = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		if a.op != opMap {
			break
		}
		if len(b) < pcpMap || b[36] != protocolUDP {
			return answer{}, fmt.Errorf("%w: %d bytes of MAP", errAnswer, len(b))
		}
		a.nonce = nonce(b[24:])
		a.internal = binary.BigEndian.Uint16(b[40:])
		ip := netip.AddrFrom16([16]byte(b[44:])).Unmap()
		a.external = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[42:]))
	default:
		return answer{}, fmt.Errorf("%w: version %d", errAnswer, a.version)
	}
	return a, nil
}

// The result codes that have an explanation of their own.
const (
	resultVersion    = 1
	resultRefused    = 2
	resultNoResource = 4 // NAT-PMP
	pcpNoResource    = 8
	pcpUserQuota     = 10
	pcpCannotExtern  = 11
)

// reason explains a result code.
func (a answer) reason() string {
	switch {
	case a.result == resultVersion:
		return "the router does not speak this version"
	case a.result == resultRefused:
		return "the router refuses port mappings"
	case a.version == versionPCP && (a.result == pcpNoResource || a.result == pcpUserQuota), a.version == versionNATPMP && a.result == resultNoResource:
		return "the router has no port left for us"
	case a.version == versionPCP && a.result == pcpCannotExtern:
		return "the router has no outside address for us"
	}
	return fmt.Sprintf("the router answers with error %d", a.result)
}
