package agent

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/device"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// prover creates evidence of this machine's identity.
type prover struct {
	tpm               *device.TPM // nil: none, or the device key is not in it
	sealed            device.Blob
	certificate, file string // the company's; empty: none
}

// Offers implements enroll.Prover.
func (p prover) Offers() (kinds []string, openings map[string][]byte, err error) {
	openings = make(map[string][]byte)
	if p.tpm != nil {
		kinds = append(kinds, wire.EvidenceTPM)
		if openings[wire.EvidenceTPM], err = p.tpm.Opening(); err != nil {
			return nil, nil, err
		}
	}
	if p.certificate != "" {
		if _, err := tls.LoadX509KeyPair(p.certificate, p.file); err != nil {
			return nil, nil, fmt.Errorf("the company certificate: %w", err)
		}
		kinds = append(kinds, wire.EvidenceX509)
	}
	return kinds, openings, nil
}

// Evidence implements enroll.Prover.
func (p prover) Evidence(kind string, parameters []byte, binding [32]byte) ([]byte, error) {
	switch {
	case kind == wire.EvidenceTPM && p.tpm != nil:
		return p.tpm.Evidence(p.sealed, parameters, binding)
	case kind == wire.EvidenceX509:
		return p.possession(binding)
	}
	return nil, fmt.Errorf("this agent has none of kind %.32q", kind)
}

// possession shows the company's certificate and proves possession of its key. The files are read again each time, since the
// machine's management renews them. A node without a usable certificate sends empty evidence, and the coordinator notes that.
func (p prover) possession(binding [32]byte) ([]byte, error) {
	c, err := tls.LoadX509KeyPair(p.certificate, p.file)
	if err != nil {
		return pb.Marshal(&redoubtv1.X509Evidence{})
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key in %s cannot be used for signatures", p.file)
	}
	digest := wire.PossessionDigest(binding)
	var opts crypto.SignerOpts = crypto.SHA256
	switch signer.Public().(type) {
	case *rsa.PublicKey:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case ed25519.PublicKey:
		opts = crypto.Hash(0)
	}
	signature, err := signer.Sign(rand.Reader, digest[:], opts)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", p.file, err)
	}
	return pb.Marshal(&redoubtv1.X509Evidence{Chain: c.Certificate, Signature: signature})
}
