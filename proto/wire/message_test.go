package wire_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"testing"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func devicePublic(t testing.TB) key.DevicePublic {
	k, err := key.NewDevice(bytes.NewReader(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k.Device()
}

func nodePublic(t testing.TB) key.NodePublic {
	k, err := key.NewNode(bytes.NewReader(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

// hello returns a valid Hello that enrols.
func hello(t testing.TB) *redoubtv1.Hello {
	return &redoubtv1.Hello{
		ProtocolMin: 1, ProtocolMax: 3, Features: proto.Features(), Program: "1.0.0", Hostname: "web", Os: "linux", Arch: "arm64",
		Purpose: &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
			Evidence: []string{"token"}, DevicePublic: devicePublic(t).Bytes(), NodePublic: nodePublic(t).Bytes(),
			TokenPublic: bytes.Repeat([]byte{1}, 32), Openings: map[string][]byte{"tpm": {1, 2}},
		}},
	}
}

func proof() *redoubtv1.Proof {
	return &redoubtv1.Proof{NodeKeyMac: make([]byte, 32), DeviceSignature: make([]byte, 70), TokenSignature: make([]byte, 64)}
}

func ups(t testing.TB) map[string]*redoubtv1.Up {
	attach := hello(t)
	attach.Purpose = &redoubtv1.Hello_Attach{Attach: &redoubtv1.Attach{Applied: wire.FromVersion(v(3))}}
	fresh := hello(t)
	fresh.Purpose = &redoubtv1.Hello_Attach{Attach: &redoubtv1.Attach{}}
	return map[string]*redoubtv1.Up{
		"enrol":        {Message: &redoubtv1.Up_Hello{Hello: hello(t)}},
		"attach":       {Message: &redoubtv1.Up_Hello{Hello: attach}},
		"attach first": {Message: &redoubtv1.Up_Hello{Hello: fresh}},
		"proof":        {Message: &redoubtv1.Up_Proof{Proof: proof()}},
		"renew": {Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{
			NodePublic: nodePublic(t).Bytes(), Ticket: make([]byte, wire.TicketSize), Talking: []uint64{1, 2},
		}}},
		"renew first": {Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{NodePublic: nodePublic(t).Bytes()}}},
		"report":      {Message: &redoubtv1.Up_Report{Report: &redoubtv1.Report{Endpoints: endpoint(192, 0, 2, 1), ListenPort: 41641}}},
		"applied":     {Message: &redoubtv1.Up_Applied{Applied: &redoubtv1.Applied{Version: wire.FromVersion(v(3))}}},
		"keepalive":   {Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}},
		"posture":     {Message: &redoubtv1.Up_Posture{Posture: health("posture:firewall", "true", "posture:edr", "")}},
	}
}

// health returns a Posture with the given facts, as pairs of name and value.
func health(pairs ...string) *redoubtv1.Posture {
	p := &redoubtv1.Posture{Whole: true}
	for i := 0; i < len(pairs); i += 2 {
		p.Facts = append(p.Facts, &redoubtv1.PostureFact{Name: pairs[i], Value: pairs[i+1], TtlSeconds: 180})
	}
	return p
}

func result() *redoubtv1.Result {
	return &redoubtv1.Result{
		Ticket:      make([]byte, wire.TicketSize),
		Certificate: []byte{1}, Chain: [][]byte{{2}}, Roots: [][]byte{{3}, {4}}, Mesh: wire.FromMesh(prototest.Mesh()),
	}
}

func challenge(t testing.TB) *redoubtv1.Challenge {
	return &redoubtv1.Challenge{
		Nonce: make([]byte, 32), EphemeralPublic: nodePublic(t).Bytes(), ServerTime: 1, Attestor: "token", Protocol: 1,
	}
}

func downs(t testing.TB) map[string]*redoubtv1.Down {
	nm := &proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self}
	return map[string]*redoubtv1.Down{
		"welcome":   {Message: &redoubtv1.Down_Welcome{Welcome: &redoubtv1.Welcome{Protocol: 1, KeepAliveSeconds: 25, Features: []string{"x/1"}, Quarantine: "two machines"}}},
		"challenge": {Message: &redoubtv1.Down_Challenge{Challenge: challenge(t)}},
		"result":    {Message: &redoubtv1.Down_Result{Result: result()}},
		"netmap":    {Message: &redoubtv1.Down_Netmap{Netmap: wire.FromNetmap(nm)[0]}},
		"delta":     {Message: &redoubtv1.Down_Delta{Delta: wire.FromDelta(&proto.Delta{From: v(3), To: v(4)})[0]}},
		"keepalive": {Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{ServerTime: 9}}},
		"refusal":   {Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{Code: redoubtv1.Refusal_CODE_TOKEN, Message: "spent"}}},
		"held":      {Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{Code: redoubtv1.Refusal_CODE_LOCKED, Message: "locked", HoldSeconds: 25}}},
		"pending": {Message: &redoubtv1.Down_Pending{Pending: &redoubtv1.Pending{
			Code: "BCDF-GHJK", Name: "web", Message: "wait", HoldSeconds: 25, RetryAfterSeconds: 60,
		}}},
	}
}

func encode(t testing.TB, m pb.Message) []byte {
	t.Helper()
	b, err := wire.AppendFrame(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	return b[4:]
}

func TestGoodMessages(t *testing.T) {
	for name, m := range ups(t) {
		if got, err := wire.DecodeUp(encode(t, m)); err != nil || !pb.Equal(got, m) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, m := range downs(t) {
		if got, err := wire.DecodeDown(encode(t, m)); err != nil || !pb.Equal(got, m) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestUpRefused(t *testing.T) {
	long := strings.Repeat("x", wire.MaxText+1)
	enrol := func(f func(e *redoubtv1.Enrol)) *redoubtv1.Up {
		h := hello(t)
		f(h.GetEnrol())
		return &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: h}}
	}
	greet := func(f func(h *redoubtv1.Hello)) *redoubtv1.Up {
		h := hello(t)
		f(h)
		return &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: h}}
	}
	tell := func(p *redoubtv1.Posture) *redoubtv1.Up {
		return &redoubtv1.Up{Message: &redoubtv1.Up_Posture{Posture: p}}
	}
	prove := func(f func(p *redoubtv1.Proof)) *redoubtv1.Up {
		p := proof()
		f(p)
		return &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: p}}
	}
	for name, m := range map[string]*redoubtv1.Up{
		"protocol zero":         greet(func(h *redoubtv1.Hello) { h.ProtocolMin = 0 }),
		"protocols exchanged":   greet(func(h *redoubtv1.Hello) { h.ProtocolMin = 4 }),
		"no purpose":            greet(func(h *redoubtv1.Hello) { h.Purpose = nil }),
		"too many features":     greet(func(h *redoubtv1.Hello) { h.Features = strings.Split(strings.Repeat("x ", 65), " ")[:65] }),
		"an empty feature":      greet(func(h *redoubtv1.Hello) { h.Features = []string{""} }),
		"a long feature":        greet(func(h *redoubtv1.Hello) { h.Features = []string{long} }),
		"a long hostname":       greet(func(h *redoubtv1.Hello) { h.Hostname = long }),
		"an escape in it":       greet(func(h *redoubtv1.Hello) { h.Hostname = "\x1b[2J" }),
		"a line in the program": greet(func(h *redoubtv1.Hello) { h.Program = "1\n2" }),
		"too many kinds":        enrol(func(e *redoubtv1.Enrol) { e.Evidence = strings.Split(strings.Repeat("x ", 17), " ")[:17] }),
		"no device key":         enrol(func(e *redoubtv1.Enrol) { e.DevicePublic = nil }),
		"a device key off P256": enrol(func(e *redoubtv1.Enrol) { e.DevicePublic[64] ^= 1 }),
		"no node key":           enrol(func(e *redoubtv1.Enrol) { e.NodePublic = nil }),
		"a node key of zero":    enrol(func(e *redoubtv1.Enrol) { e.NodePublic = make([]byte, 32) }),
		"a short token":         enrol(func(e *redoubtv1.Enrol) { e.TokenPublic = make([]byte, 31) }),
		"a zero token":          enrol(func(e *redoubtv1.Enrol) { e.TokenPublic = make([]byte, 32) }),
		"many openings": enrol(func(e *redoubtv1.Enrol) {
			e.Openings = make(map[string][]byte)
			for i := range wire.MaxKinds + 1 {
				e.Openings[strconv.Itoa(i)] = nil
			}
		}),
		"long opening":        enrol(func(e *redoubtv1.Enrol) { e.Openings = map[string][]byte{"tpm": make([]byte, wire.MaxOpening+1)} }),
		"opening of no kind":  enrol(func(e *redoubtv1.Enrol) { e.Openings = map[string][]byte{"": {1}} }),
		"much evidence":       prove(func(p *redoubtv1.Proof) { p.Evidence = make([]byte, wire.MaxEvidence+1) }),
		"much posture":        prove(func(p *redoubtv1.Proof) { p.Posture = make([]byte, wire.MaxPosture+1) }),
		"no MAC":              prove(func(p *redoubtv1.Proof) { p.NodeKeyMac = nil }),
		"no device signature": prove(func(p *redoubtv1.Proof) { p.DeviceSignature = nil }),
		"a long signature":    prove(func(p *redoubtv1.Proof) { p.DeviceSignature = make([]byte, 73) }),
		"a short signature":   prove(func(p *redoubtv1.Proof) { p.TokenSignature = make([]byte, 63) }),
		"half a ticket":       {Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{NodePublic: nodePublic(t).Bytes(), Ticket: make([]byte, 20)}}},
		"talks with too many": {Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{
			NodePublic: nodePublic(t).Bytes(), Talking: make([]uint64, wire.MaxTalking+1),
		}}},
		"renews no key":      {Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{}}},
		"port of 17 bits":    {Message: &redoubtv1.Up_Report{Report: &redoubtv1.Report{ListenPort: 65536}}},
		"too many endpoints": {Message: &redoubtv1.Up_Report{Report: &redoubtv1.Report{Endpoints: repeat[redoubtv1.Endpoint](17)}}},
		"applied nothing":    {Message: &redoubtv1.Up_Applied{Applied: &redoubtv1.Applied{}}},
		"too many facts":     tell(&redoubtv1.Posture{Facts: repeat[redoubtv1.PostureFact](wire.MaxFacts + 1)}),
		"a fact twice":       tell(health("posture:a", "1", "posture:a", "2")),
		"an own custom fact": tell(health("custom:tier", "gold")),
		"an own level":       tell(health("device:attestation", "measured")),
		"a long name":        tell(health("posture:"+strings.Repeat("a", wire.MaxFactName), "1")),
		"a long value":       tell(health("posture:a", strings.Repeat("a", wire.MaxText+1))),
		"a bell":             tell(health("posture:a", "\a")),
		"a fact for ever":    tell(&redoubtv1.Posture{Facts: []*redoubtv1.PostureFact{{Name: "posture:a", Value: "1"}}}),
	} {
		if got, err := wire.DecodeUp(encode(t, m)); !errors.Is(err, wire.ErrMalformed) || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "garbage": {1, 2, 3}, "an unknown kind": unknown} {
		if got, err := wire.DecodeUp(b); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := wire.DecodeUp(make([]byte, wire.MaxUp+1)); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("too long: %v", err)
	}
}

func TestDownRefused(t *testing.T) {
	ask := func(f func(c *redoubtv1.Challenge)) *redoubtv1.Down {
		c := challenge(t)
		f(c)
		return &redoubtv1.Down{Message: &redoubtv1.Down_Challenge{Challenge: c}}
	}
	give := func(f func(r *redoubtv1.Result)) *redoubtv1.Down {
		r := result()
		f(r)
		return &redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: r}}
	}
	greet := func(w *redoubtv1.Welcome) *redoubtv1.Down {
		return &redoubtv1.Down{Message: &redoubtv1.Down_Welcome{Welcome: w}}
	}
	for name, m := range map[string]*redoubtv1.Down{
		"no protocol":         greet(&redoubtv1.Welcome{KeepAliveSeconds: 25}),
		"no keepalive":        greet(&redoubtv1.Welcome{Protocol: 1}),
		"a rare keepalive":    greet(&redoubtv1.Welcome{Protocol: 1, KeepAliveSeconds: 1 << 31}),
		"an unclean program":  greet(&redoubtv1.Welcome{Protocol: 1, KeepAliveSeconds: 25, Program: "\x1b"}),
		"an empty feature":    greet(&redoubtv1.Welcome{Protocol: 1, KeepAliveSeconds: 25, Features: []string{""}}),
		"a short nonce":       ask(func(c *redoubtv1.Challenge) { c.Nonce = c.Nonce[1:] }),
		"no ephemeral key":    ask(func(c *redoubtv1.Challenge) { c.EphemeralPublic = nil }),
		"a low-order one":     ask(func(c *redoubtv1.Challenge) { c.EphemeralPublic = make([]byte, 32) }),
		"much to attest":      ask(func(c *redoubtv1.Challenge) { c.Parameters = make([]byte, wire.MaxEvidence+1) }),
		"an unclean attestor": ask(func(c *redoubtv1.Challenge) { c.Attestor = "\x1b" }),
		"no certificate":      give(func(r *redoubtv1.Result) { r.Certificate = nil }),
		"a great certificate": give(func(r *redoubtv1.Result) { r.Certificate = make([]byte, proto.MaxCertificate+1) }),
		"no chain":            give(func(r *redoubtv1.Result) { r.Chain = nil }),
		"a long chain":        give(func(r *redoubtv1.Result) { r.Chain = make([][]byte, 5) }),
		"no root":             give(func(r *redoubtv1.Result) { r.Roots = nil }),
		"an empty root":       give(func(r *redoubtv1.Result) { r.Roots[0] = nil }),
		"a short ticket":      give(func(r *redoubtv1.Result) { r.Ticket = []byte{1} }),
		"no mesh":             give(func(r *redoubtv1.Result) { r.Mesh = nil }),
		"a mesh of no range":  give(func(r *redoubtv1.Result) { r.Mesh.V4 = nil }),
		"a mesh of no id":     give(func(r *redoubtv1.Result) { r.Mesh.Id = "" }),
	} {
		if got, err := wire.DecodeDown(encode(t, m)); !errors.Is(err, wire.ErrMalformed) || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "garbage": {1, 2, 3}, "an unknown kind": unknown} {
		if got, err := wire.DecodeDown(b); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := wire.DecodeDown(make([]byte, wire.MaxFrame+1)); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("too long: %v", err)
	}
}

// TestRefusalText checks that a refusal's text is safe for a terminal.
func TestRefusalText(t *testing.T) {
	m := &redoubtv1.Down{Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{
		Message: "no\x1b[2J\nway" + strings.Repeat("é", 1000),
	}}}
	got, err := wire.DecodeDown(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	text := got.GetRefusal().GetMessage()
	if !strings.HasPrefix(text, "no [2J way") || len(text) > wire.MaxRefusalText || !proto.ValidText(text, wire.MaxRefusalText) {
		t.Errorf("got %q", text)
	}
}

// TestPendingIsBounded checks the limits on the texts and the hold time of a Pending.
func TestPendingIsBounded(t *testing.T) {
	pending := func(change func(*redoubtv1.Pending)) (*redoubtv1.Down, error) {
		p := &redoubtv1.Pending{Code: "BCDF-GHJK", Name: "web", Message: "wait", HoldSeconds: 25}
		change(p)
		return wire.DecodeDown(encode(t, &redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: p}}))
	}
	got, err := pending(func(p *redoubtv1.Pending) { p.Message = "no\x1b[2J\nway" + strings.Repeat("é", 1000) })
	if text := got.GetPending().GetMessage(); err != nil || !proto.ValidText(text, wire.MaxRefusalText) {
		t.Errorf("%q, %v", text, err)
	}
	for what, change := range map[string]func(*redoubtv1.Pending){
		"code": func(p *redoubtv1.Pending) { p.Code = "a\nb" },
		"name": func(p *redoubtv1.Pending) { p.Name = strings.Repeat("x", wire.MaxText+1) },
		"hold": func(p *redoubtv1.Pending) { p.HoldSeconds = 1 << 20 },
	} {
		if _, err := pending(change); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	held := &redoubtv1.Down{Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{HoldSeconds: 1 << 20}}}
	if _, err := wire.DecodeDown(encode(t, held)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a refusal that is held: %v", err)
	}
}

// TestBinding checks that no argument can be swapped for another, and that the digest does not change.
func TestBinding(t *testing.T) {
	node, device := nodePublic(t), devicePublic(t)
	nonce, exporter := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	posture, greeting := sha256.Sum256([]byte("posture")), sha256.Sum256([]byte("hello"))
	first := wire.Binding(wire.DomainEnrol, nonce, exporter, node, device, posture, greeting)
	const want = "3a93b1501432cf9a10c64a69ccbcab92e447ca6a638462667825bc8273a911ae"
	if got := hex.EncodeToString(first[:]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	other, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	machine, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[32]byte]string{first: "the first"}
	for name, b := range map[string][32]byte{
		"domain":   wire.Binding(wire.DomainRenew, nonce, exporter, node, device, posture, greeting),
		"nonce":    wire.Binding(wire.DomainEnrol, exporter, exporter, node, device, posture, greeting),
		"exporter": wire.Binding(wire.DomainEnrol, nonce, nonce, node, device, posture, greeting),
		"both":     wire.Binding(wire.DomainEnrol, exporter, nonce, node, device, posture, greeting),
		"moved":    wire.Binding(wire.DomainEnrol, nonce[:31], append([]byte{1}, exporter...), node, device, posture, greeting),
		"node":     wire.Binding(wire.DomainEnrol, nonce, exporter, other.Public(), device, posture, greeting),
		"device":   wire.Binding(wire.DomainEnrol, nonce, exporter, node, machine.Device(), posture, greeting),
		"posture":  wire.Binding(wire.DomainEnrol, nonce, exporter, node, device, greeting, greeting),
		"hello":    wire.Binding(wire.DomainEnrol, nonce, exporter, node, device, posture, posture),
	} {
		if was, ok := seen[b]; ok {
			t.Errorf("another %s is the same as %s", name, was)
		}
		seen[b] = name
	}
	if wire.NodeKeyMAC([32]byte{1}, first) == wire.NodeKeyMAC([32]byte{2}, first) || wire.NodeKeyMAC([32]byte{1}, first) == wire.NodeKeyMAC([32]byte{1}, posture) {
		t.Error("MAC does not depend on its arguments")
	}
}
