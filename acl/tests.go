package acl

import (
	"fmt"

	"github.com/tailscale/hujson"

	"github.com/redoubt-mesh/redoubt/proto"
)

// tests reads "tests": [{"src": "ann@example.com", "accept": ["tag:db:5432"], "deny": [...], "proto": "tcp"}, ...].
func (p *parser) tests(v value) {
	list, _ := p.list(v, "a list of tests")
	for i, e := range list {
		if i >= maxTests {
			p.errorf(e, "more than %d tests; join tests of the same source", maxTests)
			return
		}
		f, ok := p.fields(e, "an object with src and accept or deny", testKeys)
		if !ok {
			continue
		}
		t := Test{Place: p.place(e)}
		if m, ok := f["src"]; ok {
			t.Src, _ = p.readSelector(m.value, inTestSrc)
		}
		t.Protocols = p.testProtocols(f["proto"])
		accept, hasAccept := f["accept"]
		deny, hasDeny := f["deny"]
		if hasAccept {
			t.Accept = p.targets(accept)
		}
		if hasDeny {
			t.Deny = p.targets(deny)
		}
		if entries(accept.value)+entries(deny.value) == 0 {
			p.errorf(e, `a test needs "accept" or "deny"; say what must or must not be reachable`)
		}
		t.Facts = p.facts(f)
		p.policy.Tests = append(p.policy.Tests, t)
	}
}

// entries returns the number of entries of a list; it is 1 for a value that is not a list, which is reported elsewhere.
func entries(v value) int {
	switch x := v.Value.Value.(type) {
	case nil:
		return 0
	case *hujson.Array:
		return len(x.Elements)
	}
	return 1
}

// testProtocols returns the protocols that a test is about.
func (p *parser) testProtocols(m member) []uint8 {
	named, ok := p.protocol(m)
	if !ok || len(named) == 0 {
		return []uint8{proto.ProtoTCP, proto.ProtoUDP}
	}
	if !proto.HasPorts(named[0]) {
		p.errorf(m.value, "%s has no ports, and a test is about a port; name tcp, udp or sctp", ProtocolName(named[0]))
	}
	return named
}

func (p *parser) targets(m member) []Target {
	var out []Target
	list, _ := p.list(m.value, "a list of destinations")
	for _, v := range list {
		text, ok := p.str(v, "SELECTOR:PORT in quotes")
		if !ok {
			continue
		}
		s, ports, ok := p.withPorts(v, text, inTestDst)
		if ports == "" {
			continue
		}
		port, err := testPort(ports)
		if err != nil {
			p.errorf(v, "%v", err)
			continue
		}
		if ok {
			out = append(out, Target{Selector: s, Port: port, Full: text})
		}
	}
	return out
}

func testPort(s string) (uint16, error) {
	port, err := parsePort(s)
	if err == nil {
		return port, nil
	}
	if _, err := parsePorts(s); err == nil {
		return 0, fmt.Errorf("a test goes to one port, not to %s; write one destination for each port", quote(s))
	}
	return 0, fmt.Errorf("%s is not a port; use a number from 1 to 65535", quote(s))
}
