package wire_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// withheld returns a netmap with as many withheld rules as there may be, each about n prefixes on either side, and a small one
// after them.
func withheld(n int) *proto.Netmap {
	nm := &proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self}
	for i := range proto.MaxWithheld {
		w := proto.Withheld{Rule: many(fmt.Sprintf("grants[%03d]/out", i), n), Reason: "needs posture:managed"}
		if i == proto.MaxWithheld-1 {
			w.Peers, w.Local = proto.Selector{Prefixes: w.Peers.Prefixes[:1]}, w.Local[:1]
		}
		nm.Withheld = append(nm.Withheld, w)
	}
	return nm
}

// many returns a rule about n prefixes on either side.
func many(key string, n int) proto.Rule {
	r := proto.Rule{Key: key, Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.Out}
	for i := range n {
		r.Local = append(r.Local, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i), 15: 1}), 128))
	}
	r.Peers.Prefixes = r.Local
	return r
}

// TestHeadsFitIntoAPart checks that rules that do not even apply cannot make a netmap impossible to send.
func TestHeadsFitIntoAPart(t *testing.T) {
	for n, whole := range map[int]bool{1: true, 128: false} {
		nm := withheld(n)
		if err := nm.Validate(); err != nil {
			t.Fatal(err)
		}
		empty := &proto.Netmap{Version: v(1), Mesh: nm.Mesh, Self: nm.Self}
		got := assembleNetmap(t, wire.FromNetmap(nm))
		if whole != (len(got.Withheld) == len(nm.Withheld)) || len(got.Withheld) < 2 {
			t.Errorf("%d prefixes: %d of %d withheld rules are sent", n, len(got.Withheld), len(nm.Withheld))
		} else if last := got.Withheld[len(got.Withheld)-1]; !last.Equal(&nm.Withheld[len(nm.Withheld)-1].Rule) {
			t.Errorf("%d prefixes: the small rule at the end is left out", n)
		}
		delta := assembleDelta(t, wire.FromDelta(proto.Diff(empty, nm)))
		if applied, err := empty.Apply(delta); err != nil || diff(applied, got) != "" {
			t.Errorf("%d prefixes: the delta leads to something else: %v", n, err)
		}
		if _, err := wire.EncodeNetmapFile(nm); err != nil {
			t.Error(err)
		}
	}
}

// TestRestOfAHeadFits checks that everything but the withheld rules, each as large as it may be, fits into one part.
func TestRestOfAHeadFits(t *testing.T) {
	nm := &proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self, Outage: proto.Outage{Grace: proto.MaxGrace, Posture: proto.MaxGrace}}
	text := func(i int) string { return fmt.Sprintf("%0*d", proto.MaxName, i) }
	for range proto.MaxAuthorities {
		nm.Authorities = append(nm.Authorities, make([]byte, proto.MaxCertificate))
	}
	for i := range proto.MaxRequires {
		nm.Requires = append(nm.Requires, text(i))
	}
	for i := range proto.MaxRelays {
		r := proto.Relay{ID: proto.NodeID(i + 1), Name: text(i), Region: text(i), UDPPort: 65535, Key: [proto.RelayKeySize]byte{1}}
		for range proto.MaxRelayAddrs {
			r.UDP = append(r.UDP, netip.MustParseAddr("2001:db8::1"))
		}
		for range proto.MaxRelayURLs {
			r.URLs = append(r.URLs, "https://"+text(i)[len("https://"):])
		}
		nm.Relays = append(nm.Relays, r)
	}
	if got := assembleNetmap(t, wire.FromNetmap(nm)); !reflect.DeepEqual(nm, got) {
		t.Errorf("another netmap: %+v", proto.Diff(nm, got))
	}
}

// TestPartsAreFilledBelowTheLimit fills a later part with rules up to the last byte.
func TestPartsAreFilledBelowTheLimit(t *testing.T) {
	latest := proto.Version{Epoch: 1 << 60, N: 1 << 60}
	size := func(r proto.Rule) int {
		return pb.Size(wire.FromDelta(&proto.Delta{UpsertRules: []proto.Rule{r}})[0].UpsertRules[0])
	}
	var rules []proto.Rule
	for i := range 4 { // two for each part
		rules = append(rules, many(fmt.Sprintf("grants[%d]/out", i), proto.MaxRulePrefixes))
	}
	room := wire.MaxPart - 2*size(rules[0])
	last := many("grants[4]/out", room*proto.MaxRulePrefixes/size(rules[0])-2)
	for pad := max(0, room-size(last)-60); pad < room-size(last); pad += 6 {
		r := last
		r.Key += strings.Repeat("x", pad)
		all := append(rules[:4:4], r)
		for _, p := range wire.FromNetmap(&proto.Netmap{Version: latest, Mesh: prototest.Mesh(), Self: 1, Rules: all}) {
			if n := pb.Size(p); n >= wire.MaxPart {
				t.Fatalf("a part of a netmap has %d bytes with a key of %d", n, len(r.Key))
			}
		}
		for _, p := range wire.FromDelta(&proto.Delta{From: v(1), To: latest, UpsertRules: all}) {
			if n := pb.Size(p); n >= wire.MaxPart {
				t.Fatalf("a part of a delta has %d bytes with a key of %d", n, len(r.Key))
			}
		}
	}
}
