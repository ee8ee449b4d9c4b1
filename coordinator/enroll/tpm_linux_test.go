package enroll

import (
	"crypto"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// chipPeer is a machine with a TPM whose software can do what it likes.
type chipPeer struct {
	testing.TB
	tpm   *device.TPM
	blob  device.Blob
	node  key.NodePrivate
	token key.TokenSecret
}

// newChipPeer returns a machine, and a coordinator that trusts the maker of its TPM.
func newChipPeer(t testing.TB) (p *chipPeer, coordinator func() *Machine) {
	t.Helper()
	labtest.Installed(t, swtpm.Missing())
	dir, err := os.MkdirTemp("", "enroll") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	maker, err := swtpm.NewMaker(filepath.Join(dir, "maker"))
	if err != nil {
		t.Fatal(err)
	}
	chip, err := swtpm.New(t.Context(), filepath.Join(dir, "a"), maker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = chip.Close() })
	if err := maker.Roots(filepath.Join(dir, "roots")); err != nil {
		t.Fatal(err)
	}
	trusted := attest.NewAuthorities()
	roots, err := filepath.Glob(filepath.Join(dir, "roots", "*"))
	for _, path := range roots {
		var b []byte
		if b, err = os.ReadFile(path); err == nil {
			err = trusted.Add(b)
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	registry, err := attest.NewRegistry(attest.NewTPM(trusted), attest.Token{})
	if err != nil {
		t.Fatal(err)
	}
	other := newPeer(t)
	p = &chipPeer{TB: t, node: other.node, token: other.token}
	if p.tpm, err = device.NewTPM("unix:"+chip.Socket, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.tpm.Close() })
	if p.blob, err = p.tpm.NewKey(); err != nil {
		t.Fatal(err)
	}
	return p, func() *Machine { return New(registry, rand.Reader) }
}

// exchange is one connection up to the challenge.
type exchange struct {
	m         *Machine
	node      key.NodePrivate
	exporter  []byte
	challenge *redoubtv1.Challenge
}

// begin sends a hello with a node key over a connection.
func (p *chipPeer) begin(m *Machine, node key.NodePrivate, exporter string) *exchange {
	p.Helper()
	opening, err := p.tpm.Opening()
	if err != nil {
		p.Fatal(err)
	}
	effect, err := m.Step(time.Now(), Hello{Sum: [32]byte{1}, Exporter: []byte(exporter), Protocol: 1, Message: &redoubtv1.Hello{
		Hostname: "host", Purpose: &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
			Evidence: []string{"tpm", "token"}, Openings: map[string][]byte{"tpm": opening},
			DevicePublic: p.blob.Device().Bytes(), NodePublic: node.Public().Bytes(), TokenPublic: p.token.Public().Bytes(),
		}},
	}})
	c, ok := effect.(Challenge)
	if err != nil || !ok || c.Message.GetAttestor() != "tpm" {
		p.Fatalf("%T, %v", effect, err)
	}
	return &exchange{m, node, []byte(exporter), c.Message}
}

// binding returns what everything in the proof of an exchange is bound to.
func (p *chipPeer) binding(x *exchange) [32]byte {
	return wire.Binding(wire.DomainEnrol, x.challenge.GetNonce(), x.exporter, x.node.Public(), p.blob.Device(), sha256None, [32]byte{1})
}

// evidence returns what the TPM answers to the challenge of an exchange.
func (p *chipPeer) evidence(x *exchange, binding [32]byte) []byte {
	p.Helper()
	e, err := p.tpm.Evidence(p.blob, x.challenge.GetParameters(), binding)
	if err != nil {
		p.Fatal(err)
	}
	return e
}

// proof returns a proof that is valid except perhaps for the given evidence.
func (p *chipPeer) proof(x *exchange, evidence []byte) Proof {
	p.Helper()
	binding := p.binding(x)
	ephemeral, err := key.ParseNodePublic(x.challenge.GetEphemeralPublic())
	if err != nil {
		p.Fatal(err)
	}
	shared, err := x.node.Shared(ephemeral)
	if err != nil {
		p.Fatal(err)
	}
	mac := wire.NodeKeyMAC(shared, binding)
	signature, err := p.tpm.Key(p.blob).Sign(rand.Reader, binding[:], crypto.SHA256)
	if err != nil {
		p.Fatal(err)
	}
	return Proof{&redoubtv1.Proof{Evidence: evidence, NodeKeyMac: mac[:], DeviceSignature: signature, TokenSignature: p.token.Sign(binding[:])}}
}

// judged expects a refusal with a reason.
func judged(t *testing.T, x *exchange, proof Proof, why string) {
	t.Helper()
	effect, err := x.m.Step(time.Now(), proof)
	var r *refusal.Refusal
	if effect != nil || !errors.As(err, &r) || r.Code != redoubtv1.Refusal_CODE_PROOF || !strings.Contains(r.Message, why) {
		t.Errorf("%T, %v; want a refusal for %q", effect, err, why)
	}
}

// TestEvidenceIsForOneExchange checks that the software of a machine, which may use the TPM as it likes and can sign with all
// its keys, cannot use what the TPM said in one exchange in another.
func TestEvidenceIsForOneExchange(t *testing.T) {
	p, coordinator := newChipPeer(t)
	x := p.begin(coordinator(), p.node, "one connection")
	good := p.evidence(x, p.binding(x))
	proof := p.proof(x, good)
	effect, err := x.m.Step(time.Now(), proof)
	if a, ok := effect.(Admit); err != nil || !ok || a.Kind != "tpm" || a.Attributes.Level != cert.LevelTPM || a.Claim.Node != p.node.Public() {
		t.Fatalf("%+v, %v", effect, err)
	}
	swapped := newPeer(t).node

	t.Run("replayed proof", func(t *testing.T) {
		judged(t, p.begin(coordinator(), p.node, "one connection"), proof, "the node key")
	})
	t.Run("replayed evidence", func(t *testing.T) {
		again := p.begin(coordinator(), p.node, "one connection")
		judged(t, again, p.proof(again, good), "was not opened")
	})
	t.Run("quote relayed through another connection", func(t *testing.T) {
		// A man in the middle forwards the coordinator's challenge, and the TPM's answers.
		far := p.begin(coordinator(), p.node, "to the coordinator")
		near := *far
		near.exporter = []byte("from the machine")
		judged(t, far, p.proof(far, p.evidence(far, p.binding(&near))), "was not opened")
		far = p.begin(coordinator(), p.node, "to the coordinator")
		near = *far
		near.exporter = []byte("from the machine")
		judged(t, far, p.proof(far, mixed(t, p.evidence(far, p.binding(far)), p.evidence(far, p.binding(&near)))), "replayed, or relayed")
	})
	t.Run("swapped node key", func(t *testing.T) {
		mine := p.begin(coordinator(), swapped, "one connection")
		as := *mine
		as.node = p.node
		judged(t, mine, p.proof(mine, p.evidence(mine, p.binding(&as))), "was not opened")
		mine = p.begin(coordinator(), swapped, "one connection")
		as = *mine
		as.node = p.node
		judged(t, mine, p.proof(mine, mixed(t, p.evidence(mine, p.binding(mine)), p.evidence(mine, p.binding(&as)))), "replayed, or relayed")
	})
	t.Run("flipped blob", func(t *testing.T) {
		again := p.begin(coordinator(), p.node, "one connection")
		e := p.evidence(again, p.binding(again))
		bare := p.proof(again, nil)
		for i := range e {
			m := *again.m
			flipped := append([]byte(nil), e...)
			flipped[i] ^= 1
			bare.Message.Evidence = flipped
			effect, err := m.Step(time.Now(), bare)
			if a, ok := effect.(Admit); ok || err == nil {
				t.Errorf("with byte %d of %d changed it is %+v", i, len(e), a)
			}
		}
	})
}

// mixed returns good evidence with the quote of other evidence.
func mixed(t *testing.T, good, quote []byte) []byte {
	t.Helper()
	var g, q redoubtv1.TPMEvidence
	if err := errors.Join(pb.Unmarshal(good, &g), pb.Unmarshal(quote, &q)); err != nil {
		t.Fatal(err)
	}
	g.Quote, g.QuoteSignature, g.Pcrs = q.GetQuote(), q.GetQuoteSignature(), q.GetPcrs()
	b, err := pb.Marshal(&g)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
