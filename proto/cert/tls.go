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

// ExporterLabel is the label of the exported secret that binds an enrolment to its TLS connection (RFC 5705).
const ExporterLabel = "EXPORTER-redoubt-binding"

// exporterSize is the length of that secret in bytes.
const exporterSize = 32

// Exporter returns the secret that only the two ends of a TLS connection know.
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

// TLSCertificate builds the certificate that one end of a handshake presents: its leaf, followed by the chain up to the root.
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

// ServerConfig returns the TLS configuration of a coordinator. Clients without a certificate are accepted; they can only enrol.
// verify checks the chain that a client presents, leaf first; an error from it ends the handshake. known holds the intermediates
// that verify has already: clients whose leaf is signed by one of them omit the rest of the chain, which would otherwise stay in
// memory for as long as the connection lasts.
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

// ClientConfig returns the TLS configuration of a node. If leaf is nil, the client presents no certificate. verify checks the
// server's chain, leaf first, and replaces all checks of crypto/tls: host names and the system's roots mean nothing in a mesh. Of
// a leaf made by TLSCertificate, the client sends only as much of the chain as the server needs.
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

// shortest omits the rest of the chain if the leaf's issuer is among the authorities that the other side has announced.
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

// Chain returns the certificates that the other side presented, leaf first.
func Chain(cs tls.ConnectionState) [][]byte {
	out := make([][]byte, len(cs.PeerCertificates))
	for i, c := range cs.PeerCertificates {
		out[i] = c.Raw
	}
	return out
}

// ForCoordinator returns a verify function for ClientConfig: the server must be a coordinator of the mesh.
func (v *Verifier) ForCoordinator(now func() time.Time) func(chain [][]byte) error {
	return func(chain [][]byte) error {
		_, err := v.Coordinator(chain, now())
		return err
	}
}

// ForJoining returns a verify function for ClientConfig: the server must be a coordinator under the root with this fingerprint.
func ForJoining(fingerprint [32]byte, now func() time.Time) func(chain [][]byte) error {
	return func(chain [][]byte) error {
		_, err := JoinCoordinator(chain, fingerprint, now())
		return err
	}
}
