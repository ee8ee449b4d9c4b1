package wire

import (
	"cmp"
	"fmt"
	"strings"
	"unicode"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Limits of message fields, in bytes unless noted.
const (
	NonceSize      = 32
	MACSize        = 32
	TicketSize     = 40
	MaxTalking     = 256 // entries
	MaxFeatures    = 64  // entries
	MaxKinds       = 16  // entries: kinds of evidence
	MaxText        = 256
	MaxEvidence    = 46 << 10 // a measured-boot log, and what accompanies it
	MaxOpening     = 16 << 10
	MaxPosture     = 16 << 10
	MaxFacts       = 64  // entries: facts about a machine's health
	MaxFactName    = 128 // with its prefix
	MaxRefusalText = 1024
	maxSignature   = 72 // ECDSA P-256
	tokenSignature = 64 // Ed25519
	maxChain       = 4  // certificates
	maxRoots       = 8  // certificates
	maxKeepAlive   = 3600
)

// DecodeUp decodes a message from a node. It checks that all fields have the lengths and ranges that the schema states, and that
// public keys are valid; only Report.relay is left for ToRelay to check.
func DecodeUp(frame []byte) (*redoubtv1.Up, error) {
	if len(frame) > MaxUp {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, len(frame), MaxUp)
	}
	var m redoubtv1.Up
	if err := pb.Unmarshal(frame, &m); err != nil {
		return nil, malformed("not an Up message")
	}
	if err := checkUp(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

func checkUp(m *redoubtv1.Up) error {
	switch x := m.GetMessage().(type) {
	case *redoubtv1.Up_Hello:
		return checkHello(x.Hello)
	case *redoubtv1.Up_Proof:
		return checkProof(x.Proof)
	case *redoubtv1.Up_Renew:
		return checkRenew(x.Renew)
	case *redoubtv1.Up_Report:
		if x.Report.GetListenPort() > 65535 {
			return malformed("port %d", x.Report.GetListenPort())
		}
		_, err := toReach(x.Report)
		return err
	case *redoubtv1.Up_Applied:
		if x.Applied.GetVersion() == nil {
			return malformed("applied no version")
		}
		return nil
	case *redoubtv1.Up_KeepAlive:
		return nil
	case *redoubtv1.Up_Posture:
		return checkPosture(x.Posture)
	}
	return malformed("an Up message of a kind that this program does not know")
}

func checkRenew(r *redoubtv1.Renew) error {
	if n := len(r.GetTicket()); n != 0 && n != TicketSize {
		return malformed("ticket of %d bytes, want %d or none", n, TicketSize)
	}
	if n := len(r.GetTalking()); n > MaxTalking {
		return malformed("talks with %d peers, at most %d", n, MaxTalking)
	}
	return cmp.Or(checkNodePublic(r.GetNodePublic()), checkFacts(r.GetFacts()))
}

func checkPosture(p *redoubtv1.Posture) error {
	if n := len(p.GetFacts()); n > MaxFacts {
		return malformed("posture: %d facts, at most %d", n, MaxFacts)
	}
	seen := make(map[string]struct{}, len(p.GetFacts()))
	for _, f := range p.GetFacts() {
		name := f.GetName()
		if !strings.HasPrefix(name, "posture:") || !proto.ValidText(name, MaxFactName) {
			return malformed("posture: a fact that is not called posture:NAME")
		}
		if _, twice := seen[name]; twice {
			return malformed("posture: %s twice", name)
		}
		seen[name] = struct{}{}
		if v := f.GetValue(); v != "" && (!proto.ValidText(v, MaxText) || f.GetTtlSeconds() == 0) {
			return malformed("posture: %s has a value that is too long or not printable, or no time to live", name)
		}
	}
	return nil
}

func checkFacts(f *redoubtv1.Facts) error {
	if len(f.GetOsVersion()) > MaxText {
		return malformed("version of the operating system of %d bytes, at most %d", len(f.GetOsVersion()), MaxText)
	}
	_, err := ToRoutes(f.GetRoutes())
	return err
}

func checkHello(h *redoubtv1.Hello) error {
	if err := checkFacts(h.GetFacts()); err != nil {
		return err
	}
	if h.GetProtocolMin() == 0 || h.GetProtocolMin() > h.GetProtocolMax() {
		return malformed("protocol versions %d to %d", h.GetProtocolMin(), h.GetProtocolMax())
	}
	if err := checkTexts("features", h.GetFeatures(), MaxFeatures); err != nil {
		return err
	}
	for _, s := range []string{h.GetProgram(), h.GetHostname(), h.GetOs(), h.GetArch()} {
		if s != "" && !proto.ValidText(s, MaxText) {
			return malformed("a text of the hello is too long or not printable")
		}
	}
	switch x := h.GetPurpose().(type) {
	case *redoubtv1.Hello_Enrol:
		return checkEnrol(x.Enrol)
	case *redoubtv1.Hello_Attach:
		_, err := ToVersion(x.Attach.GetApplied())
		return err
	}
	return malformed("a hello with a purpose that this program does not know")
}

func checkEnrol(e *redoubtv1.Enrol) error {
	if err := checkTexts("evidence", e.GetEvidence(), MaxKinds); err != nil {
		return err
	}
	if _, err := key.ParseDevicePublic(e.GetDevicePublic()); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if t := e.GetTokenPublic(); len(t) != 0 {
		if _, err := key.ParseTokenPublic(t); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
	}
	if len(e.GetOpenings()) > MaxKinds {
		return malformed("openings: %d, at most %d", len(e.GetOpenings()), MaxKinds)
	}
	for kind, opening := range e.GetOpenings() {
		if !proto.ValidText(kind, MaxText) || len(opening) > MaxOpening {
			return malformed("an opening without a name, or of %d bytes, at most %d", len(opening), MaxOpening)
		}
	}
	return checkNodePublic(e.GetNodePublic())
}

func checkProof(p *redoubtv1.Proof) error {
	switch {
	case len(p.GetEvidence()) > MaxEvidence:
		return malformed("evidence of %d bytes, at most %d", len(p.GetEvidence()), MaxEvidence)
	case len(p.GetPosture()) > MaxPosture:
		return malformed("posture of %d bytes, at most %d", len(p.GetPosture()), MaxPosture)
	case len(p.GetNodeKeyMac()) != MACSize:
		return malformed("MAC of %d bytes, want %d", len(p.GetNodeKeyMac()), MACSize)
	case len(p.GetDeviceSignature()) == 0 || len(p.GetDeviceSignature()) > maxSignature:
		return malformed("device signature of %d bytes", len(p.GetDeviceSignature()))
	case len(p.GetTokenSignature()) != 0 && len(p.GetTokenSignature()) != tokenSignature:
		return malformed("token signature of %d bytes, want %d or none", len(p.GetTokenSignature()), tokenSignature)
	}
	return nil
}

func checkNodePublic(b []byte) error {
	if _, err := key.ParseNodePublic(b); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func checkTexts(what string, list []string, most int) error {
	if len(list) > most {
		return malformed("%s: %d, at most %d", what, len(list), most)
	}
	for _, s := range list {
		if !proto.ValidText(s, MaxText) {
			return malformed("%s: one is empty, too long or not printable", what)
		}
	}
	return nil
}

// DecodeDown decodes a message from a coordinator, as DecodeUp does for a node. Parts of netmaps and deltas are left for their
// assemblers to check. Texts for people are made safe for a terminal.
func DecodeDown(frame []byte) (*redoubtv1.Down, error) {
	if len(frame) > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrame, len(frame), MaxFrame)
	}
	var m redoubtv1.Down
	if err := pb.Unmarshal(frame, &m); err != nil {
		return nil, malformed("not a Down message")
	}
	if err := checkDown(&m); err != nil {
		return nil, err
	}
	return &m, nil
}

func checkDown(m *redoubtv1.Down) error {
	switch x := m.GetMessage().(type) {
	case *redoubtv1.Down_Welcome:
		return checkWelcome(x.Welcome)
	case *redoubtv1.Down_Challenge:
		return checkChallenge(x.Challenge)
	case *redoubtv1.Down_Result:
		return checkResult(x.Result)
	case *redoubtv1.Down_Netmap:
		if x.Netmap == nil {
			return malformed("no netmap")
		}
		return nil
	case *redoubtv1.Down_Delta:
		if x.Delta == nil {
			return malformed("no delta")
		}
		return nil
	case *redoubtv1.Down_KeepAlive:
		return nil
	case *redoubtv1.Down_Refusal:
		x.Refusal.Message = oneLine(x.Refusal.GetMessage())
		return checkHold(x.Refusal.GetHoldSeconds())
	case *redoubtv1.Down_Pending:
		return checkPending(x.Pending)
	}
	return malformed("a Down message of a kind that this program does not know")
}

func checkPending(p *redoubtv1.Pending) error {
	for _, s := range []string{p.GetCode(), p.GetName()} {
		if s != "" && !proto.ValidText(s, MaxText) {
			return malformed("the code or the name of a machine that waits is too long or not printable")
		}
	}
	p.Message = oneLine(p.GetMessage())
	return checkHold(p.GetHoldSeconds())
}

func checkHold(seconds uint32) error {
	if seconds > maxKeepAlive {
		return malformed("a keepalive of %d s", seconds)
	}
	return nil
}

// oneLine makes text from outside safe to print.
func oneLine(s string) string {
	if len(s) > MaxRefusalText {
		s = strings.ToValidUTF8(s[:MaxRefusalText], "")
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

func checkWelcome(w *redoubtv1.Welcome) error {
	if w.GetProtocol() == 0 || w.GetKeepAliveSeconds() == 0 || w.GetKeepAliveSeconds() > maxKeepAlive {
		return malformed("welcome with protocol %d and a keepalive of %d s", w.GetProtocol(), w.GetKeepAliveSeconds())
	}
	if p := w.GetProgram(); p != "" && !proto.ValidText(p, MaxText) {
		return malformed("the coordinator's program is too long or not printable")
	}
	w.Quarantine = oneLine(w.GetQuarantine())
	return checkTexts("features", w.GetFeatures(), MaxFeatures)
}

func checkChallenge(c *redoubtv1.Challenge) error {
	switch {
	case len(c.GetNonce()) != NonceSize:
		return malformed("nonce of %d bytes, want %d", len(c.GetNonce()), NonceSize)
	case c.GetAttestor() != "" && !proto.ValidText(c.GetAttestor(), MaxText):
		return malformed("the attestor's name")
	case len(c.GetParameters()) > MaxEvidence:
		return malformed("parameters of %d bytes, at most %d", len(c.GetParameters()), MaxEvidence)
	}
	return checkNodePublic(c.GetEphemeralPublic())
}

func checkResult(r *redoubtv1.Result) error {
	if len(r.GetChain()) == 0 || len(r.GetChain()) > maxChain || len(r.GetRoots()) == 0 || len(r.GetRoots()) > maxRoots {
		return malformed("a result with %d intermediates and %d roots", len(r.GetChain()), len(r.GetRoots()))
	}
	certificates := append(append([][]byte{r.GetCertificate()}, r.GetChain()...), r.GetRoots()...)
	for _, c := range certificates {
		if len(c) == 0 || len(c) > proto.MaxCertificate {
			return malformed("a certificate of %d bytes", len(c))
		}
	}
	if n := len(r.GetTicket()); n != 0 && n != TicketSize {
		return malformed("a ticket of %d bytes, want %d or none", n, TicketSize)
	}
	_, err := ToMesh(r.GetMesh())
	return err
}
