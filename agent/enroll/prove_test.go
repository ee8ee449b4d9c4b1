package enroll

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	pb "google.golang.org/protobuf/proto"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// chip proves with the parameters and the binding.
type chip struct{ broken error }

func (c chip) Offers() ([]string, map[string][]byte, error) {
	return []string{"chip"}, map[string][]byte{"chip": []byte("seven")}, c.broken
}

func (c chip) Evidence(kind string, parameters []byte, binding [32]byte) ([]byte, error) {
	return slices.Concat([]byte(kind), parameters, binding[:]), c.broken
}

func TestEvidenceBesideTheToken(t *testing.T) {
	l := newLab(t)
	l.r.Prover = chip{}
	exporter := make([]byte, 32)
	for domain, begin := range map[string]func(Request) (*Exchange, error){wire.DomainEnrol: Enrol, wire.DomainRenew: Renew} {
		x, err := begin(l.r)
		if err != nil {
			t.Fatal(err)
		}
		var up redoubtv1.Up
		if err := pb.Unmarshal(x.First(), &up); err != nil {
			t.Fatal(err)
		}
		if e := up.GetHello().GetEnrol(); e != nil && (!slices.Equal(e.GetEvidence(), []string{"chip", "token"}) || string(e.GetOpenings()["chip"]) != "seven") {
			t.Errorf("%v", e)
		}
		c := l.challenge(t)
		c.Attestor, c.Parameters = "chip", []byte("?")
		answer, err := x.Answer(c, exporter)
		if err != nil {
			t.Fatal(err)
		}
		binding := wire.Binding(domain, c.GetNonce(), exporter, l.r.Node.Public(), l.r.Device.Device(), sha256.Sum256(nil), sha256.Sum256(x.First()))
		if got := answer.GetProof().GetEvidence(); string(got) != "chip?"+string(binding[:]) {
			t.Errorf("%s: %q", domain, got)
		}
	}
	x, err := Enrol(l.r)
	if err != nil {
		t.Fatal(err)
	}
	if up, err := x.Answer(l.challenge(t), exporter); err != nil || len(up.GetProof().GetEvidence()) != 0 {
		t.Errorf("asked for the token only: %v, %v", up, err)
	}
}

func TestEvidenceThatCannotBeMade(t *testing.T) {
	l := newLab(t)
	broken := errors.New("no chip answers")
	l.r.Prover = chip{broken}
	if _, err := Enrol(l.r); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	x, err := Renew(l.r)
	if err != nil {
		t.Fatal(err)
	}
	c := l.challenge(t)
	c.Attestor = "chip"
	if _, err := x.Answer(c, make([]byte, 32)); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	// A coordinator that asks for no evidence at an enrolment is refused.
	l.r.Prover = chip{}
	if x, err = Enrol(l.r); err != nil {
		t.Fatal(err)
	}
	c.Attestor = ""
	if _, err := x.Answer(c, make([]byte, 32)); err == nil {
		t.Error("answered a challenge for nothing")
	}
}
