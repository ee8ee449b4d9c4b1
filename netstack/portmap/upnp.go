package portmap

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ssdp is the multicast address on which routers listen for searches.
var ssdp = netip.AddrPortFrom(netip.AddrFrom4([4]byte{239, 255, 255, 250}), 1900)

// search returns a request for routers to announce the location of their description.
func search(to netip.AddrPort) []byte {
	return []byte("M-SEARCH * HTTP/1.1\r\nHOST: " + to.String() +
		"\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n")
}

// maxBody bounds the size of a router's answers over HTTP.
const maxBody = 64 << 10

var (
	errSearch      = errors.New("no answer to a search")
	errDescription = errors.New("no description of a router")
	errSOAP        = errors.New("no answer of a router")
)

// parseSearch returns the location in an answer to a search. It must be at the gateway's own address.
func parseSearch(b []byte, gateway netip.Addr) (string, error) {
	if !bytes.HasPrefix(b, []byte("HTTP/1.")) || len(b) > 2048 {
		return "", errSearch
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(strings.TrimSpace(name), "location") {
			continue
		}
		u, err := url.Parse(strings.TrimSpace(value))
		if err != nil {
			return "", errSearch
		}
		return ownURL(u, gateway)
	}
	return "", errSearch
}

// ownURL returns u as a string, if it is at the gateway's address.
func ownURL(u *url.URL, gateway netip.Addr) (string, error) {
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil || a.Unmap() != gateway || u.Scheme != "http" || u.User != nil {
		return "", fmt.Errorf("%w: location %.100q is not at %s", errSearch, u.Redacted(), gateway)
	}
	u.Fragment = ""
	return u.String(), nil
}

// service is the part of a router that maps ports.
type service struct {
	kind    string // the URN
	control string // the URL
}

// The services that map ports, best first.
var wanted = []string{
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
}

type xmlDevice struct {
	Services []struct {
		Type    string `xml:"serviceType"`
		Control string `xml:"controlURL"`
	} `xml:"serviceList>service"`
	Devices []xmlDevice `xml:"deviceList>device"`
}

// parseDescription finds the best service in a router's description, which was fetched from location.
func parseDescription(b []byte, location string, gateway netip.Addr) (service, error) {
	var root struct {
		Base   string    `xml:"URLBase"`
		Device xmlDevice `xml:"device"`
	}
	base, err := url.Parse(location)
	if err != nil || len(b) > maxBody || xml.Unmarshal(b, &root) != nil {
		return service{}, errDescription
	}
	if root.Base != "" {
		if base, err = base.Parse(strings.TrimSpace(root.Base)); err != nil {
			return service{}, errDescription
		}
	}
	best, at := service{}, len(wanted)
	for rest := []xmlDevice{root.Device}; len(rest) > 0; rest = rest[1:] {
		rest = append(rest, rest[0].Devices...)
		for _, s := range rest[0].Services {
			i := slices.Index(wanted, strings.TrimSpace(s.Type))
			if i < 0 || i >= at {
				continue
			}
			u, err := base.Parse(strings.TrimSpace(s.Control))
			if err != nil {
				continue
			}
			if control, err := ownURL(u, gateway); err == nil {
				best, at = service{wanted[i], control}, i
			}
		}
	}
	if at == len(wanted) {
		return service{}, fmt.Errorf("%w that maps ports", errDescription)
	}
	return best, nil
}

// soap returns the body of a request for an action. Names and values are our own, so they are not escaped.
func (s service) soap(action string, args ...[2]string) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"` +
		` s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:` + action + ` xmlns:u="` + s.kind + `">`)
	for _, a := range args {
		b.WriteString("<" + a[0] + ">" + a[1] + "</" + a[0] + ">")
	}
	b.WriteString("</u:" + action + "></s:Body></s:Envelope>")
	return b.String()
}

// The service errors that are handled specially.
const (
	upnpConflict  = 718 // the external port is taken
	upnpSamePorts = 724 // external and internal ports must be the same
	upnpPermanent = 725 // only permanent mappings are supported
)

// reply is the answer of a service.
type reply struct {
	address netip.Addr // GetExternalIPAddress
	code    int        // error code; 0 means none
}

// parseReply parses the answer of a service.
func parseReply(b []byte) (reply, error) {
	var envelope struct {
		Body struct {
			Address struct {
				IP string `xml:"NewExternalIPAddress"`
			} `xml:"GetExternalIPAddressResponse"`
			Added *struct{} `xml:"AddPortMappingResponse"`
			Fault *struct {
				Code string `xml:"detail>UPnPError>errorCode"`
			} `xml:"Fault"`
		} `xml:"Body"`
	}
	if len(b) > maxBody || xml.Unmarshal(b, &envelope) != nil {
		return reply{}, errSOAP
	}
	body := envelope.Body
	switch {
	case body.Fault != nil:
		n, err := strconv.Atoi(strings.TrimSpace(body.Fault.Code))
		if err != nil || n <= 0 || n > 999 {
			return reply{}, errSOAP
		}
		return reply{code: n}, nil
	case body.Added != nil:
		return reply{}, nil
	}
	a, err := netip.ParseAddr(strings.TrimSpace(body.Address.IP))
	if err != nil || !a.Is4() {
		return reply{}, errSOAP
	}
	return reply{address: a}, nil
}
