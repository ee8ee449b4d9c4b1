package cert

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ExporterLabel names the secret that binds an enrolment to the TLS connection on which it happens (RFC 5705).
const ExporterLabel = "EXPORTER-redoubt-binding"

// exporterSize is the length of that secret.
const exporterSize = 32

// Exporter is the secret that both ends of a TLS connection know and nobody between them.
func Exporter(cs tls.ConnectionState) ([]byte, error) {
	if cs.Version != tls.VersionTLS13 {
		return nil, errors.New("tls exporter: not TLS 1.3")
	}
	b, err := cs.ExportKeyingMaterial(ExporterLabel, nil, exporterSize)
	if err != nil {
		return nil, fmt.Errorf("tls exporter: %w", err)
	}
	return b, nil
}

// TLSCertificate puts together what one end of a handshake presents: its leaf, then what leads up to the root.
func TLSCertificate(signer crypto.Signer, leaf []byte, above ...[]byte) (tls.Certificate, error) {
	c, err := parseCertificate(leaf)
	if err != nil {
		return tls.Certificate{}, err
	}
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(signer.Public()) {
		return tls.Certificate{}, fmt.Errorf("%w: not of the key that is to sign handshakes", ErrMalformed)
	}
	return tls.Certificate{Certificate: append([][]byte{leaf}, above...), PrivateKey: signer, Leaf: c}, nil
}

// ServerConfig is TLS for a coordinator. Clients may come without a certificate: those can only enrol. verify judges the
// chain of one that presents a certificate, leaf first; its error ends the handshake. known are the intermediates that
// verify needs nobody to show it: clients whose leaf is signed by one of them leave the rest of the chain out. Every
// connection keeps what its client showed for as long as it lasts.
func ServerConfig(leaf tls.Certificate, known *x509.CertPool, verify func(chain [][]byte) error) *tls.Config {
	c := base()
	c.Certificates = []tls.Certificate{leaf}
	c.ClientAuth, c.ClientCAs = tls.RequestClientCert, known
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return verify(Chain(cs))
	}
	return c
}

// ClientConfig is TLS for a node. Without a leaf (nil) it presents no certificate. verify judges the server's chain, leaf
// first, and stands in for all that crypto/tls would check: names and the system's roots mean nothing in a mesh. Of a leaf
// that TLSCertificate made, no more of the chain is presented than the server asks for.
func ClientConfig(leaf *tls.Certificate, verify func(chain [][]byte) error) *tls.Config {
	c := base()
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error { return verify(Chain(cs)) }
	if leaf != nil {
		c.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return shortest(leaf, r.AcceptableCAs), nil
		}
	}
	return c
}

// shortest leaves out of a chain what the other side has already, by the names of the authorities that it takes.
func shortest(chain *tls.Certificate, known [][]byte) *tls.Certificate {
	if chain.Leaf == nil {
		return chain
	}
	issuer := chain.Leaf.RawIssuer
	if !slices.ContainsFunc(known, func(name []byte) bool { return bytes.Equal(name, issuer) }) {
		return chain
	}
	short := *chain
	short.Certificate = chain.Certificate[:1]
	return &short
}

func base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

// Chain is what the other side presented, leaf first.
func Chain(cs tls.ConnectionState) [][]byte {
	out := make([][]byte, len(cs.PeerCertificates))
	for i, c := range cs.PeerCertificates {
		out[i] = c.Raw
	}
	return out
}

// ForCoordinator is a verify function for ClientConfig: the server must be a coordinator of the mesh.
func (v *Verifier) ForCoordinator(now func() time.Time) func(chain [][]byte) error {
	return func(chain [][]byte) error {
		_, err := v.Coordinator(chain, now())
		return err
	}
}

// ForJoining is a verify function for ClientConfig: the server must be a coordinator under the root with the fingerprint.
func ForJoining(fingerprint [32]byte, now func() time.Time) func(chain [][]byte) error {
	return func(chain [][]byte) error {
		_, err := JoinCoordinator(chain, fingerprint, now())
		return err
	}
}
