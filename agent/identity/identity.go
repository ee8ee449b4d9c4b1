// Package identity is who this node is: its certificate with the chain below a root, the roots that it trusts, and the mesh,
// all verified to belong together and to this machine's keys.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Record is an identity as a coordinator issues it and the disk keeps it.
type Record struct {
	Chain [][]byte // DER: the node's certificate, then intermediates
	Roots [][]byte // DER
	Mesh  proto.Mesh
	// Ticket serves for one renewal of the certificate; empty if the coordinator gave none.
	Ticket []byte `json:",omitempty"`
}

// Limits of a record.
const (
	MaxChain = 5
	MaxRoots = 8
)

// Self is a verified record.
type Self struct {
	Record   Record
	Node     *cert.Node
	Key      key.NodePublic // the first of the node's keys that the certificate names; zero: they are lost
	Verifier *cert.Verifier // trusts the record's roots; knows the record's intermediates
}

// verifier returns a verifier that trusts the given roots and knows the record's intermediates.
func (r Record) verifier(roots [][]byte) (*cert.Verifier, error) {
	if len(r.Chain) == 0 || len(r.Chain) > MaxChain || len(roots) == 0 || len(roots) > MaxRoots {
		return nil, fmt.Errorf("identity with %d certificates and %d roots: want 1 to %d and 1 to %d",
			len(r.Chain), len(roots), MaxChain, MaxRoots)
	}
	parsed := make([]*x509.Certificate, len(roots))
	for i, der := range roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		parsed[i] = root
	}
	v, err := cert.NewVerifier(r.Mesh.ID, parsed)
	if err != nil {
		return nil, err
	}
	if err := v.AddIntermediates(r.Chain[1:]); err != nil {
		return nil, err
	}
	return v, nil
}

// Under returns the record with only those of its roots that are among the trusted ones or that these vouch for: a
// coordinator alone cannot introduce a root. It is an error if the record's certificate is not under a trusted root, or if
// no root is left.
func (r Record) Under(trusted [][]byte) (Record, error) {
	v, err := r.verifier(trusted)
	if err != nil {
		return Record{}, fmt.Errorf("not under a root that this node trusts: %w", err)
	}
	if _, err := v.Member(r.Chain[0], never); err != nil {
		return Record{}, fmt.Errorf("not under a root that this node trusts: %w", err)
	}
	var roots [][]byte
	for _, der := range r.Roots {
		root, _, err := cert.ParseRoot(der)
		if err != nil {
			return Record{}, fmt.Errorf("root certificate: %w", err)
		}
		if v.Trusts(root) {
			roots = append(roots, der)
		}
	}
	if len(roots) == 0 {
		return Record{}, errors.New("it comes with no root that this node trusts, or that a trusted root has signed")
	}
	r.Roots = roots
	return r, nil
}

// Check verifies that a record is the identity of a machine, a node's or a relay's, with this device key and one of these node
// keys: it uses the first that the certificate names. Whether the certificate has expired is checked elsewhere, again and again.
func Check(r Record, device key.DevicePublic, held ...key.NodePublic) (*Self, error) {
	s, err := CheckLost(r, device)
	if err != nil {
		return nil, err
	}
	for _, h := range held {
		if slices.ContainsFunc(s.Node.Keys, func(k cert.NodeKey) bool { return k.Public == h }) {
			s.Key = h
			return s, nil
		}
	}
	return nil, errors.New("the certificate does not name this node's key")
}

// CheckLost is Check for a machine that has lost its node keys. Its identity has no Key: nothing passes until it has renewed.
func CheckLost(r Record, device key.DevicePublic) (*Self, error) {
	v, err := r.verifier(r.Roots)
	if err != nil {
		return nil, err
	}
	n, err := v.Member(r.Chain[0], never)
	if err != nil {
		return nil, err
	}
	switch {
	case n.Device != device:
		return nil, errors.New("the certificate is for a different device key")
	case !r.Mesh.V4.Contains(n.Addrs.V4) || !r.Mesh.V6.Contains(n.Addrs.V6):
		return nil, fmt.Errorf("the certificate's addresses %v and %v are not in the mesh's ranges %v and %v",
			n.Addrs.V4, n.Addrs.V6, r.Mesh.V4, r.Mesh.V6)
	}
	return &Self{Record: r, Node: n, Verifier: v}, nil
}

// Trust returns a separate verifier that trusts what the identity does.
func (s *Self) Trust() (*cert.Verifier, error) { return s.Record.verifier(s.Record.Roots) }

// Certificate verifies a node certificate apart from its validity period.
func Certificate(v *cert.Verifier, der []byte) (*cert.Node, error) {
	return v.NodeOutOfTime(der, never)
}

// Checked is the result for one certificate.
type Checked struct {
	Node *cert.Node // nil if Err is not
	Err  error
}

// Certificates is Certificate for many, on all processors: each takes a tenth of a millisecond.
func Certificates(v *cert.Verifier, ders [][]byte) []Checked {
	const slice = 32 // taken by a worker at a time
	out := make([]Checked, len(ders))
	var next atomic.Int64
	work := func() {
		for {
			to := int(next.Add(slice))
			if to-slice >= len(ders) {
				return
			}
			for i := to - slice; i < min(to, len(ders)); i++ {
				out[i].Node, out[i].Err = Certificate(v, ders[i])
			}
		}
	}
	var others sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (len(ders)+slice-1)/slice) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return out
}

// never is later than the end of any certificate.
var never = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Follows checks that s may replace old: the same node of the same mesh, under roots that the old identity trusts or that
// those vouch for, and not an earlier certificate.
func (s *Self) Follows(old *Self) error {
	switch {
	case s.Node.ID != old.Node.ID || s.Record.Mesh.ID != old.Record.Mesh.ID:
		return fmt.Errorf("a certificate of node %v in mesh %v came for node %v in mesh %v",
			s.Node.ID, s.Record.Mesh.ID, old.Node.ID, old.Record.Mesh.ID)
	case s.Node.Sequence < old.Node.Sequence:
		return fmt.Errorf("certificate number %d came after number %d", s.Node.Sequence, old.Node.Sequence)
	}
	under, err := s.Record.Under(old.Record.Roots)
	if err != nil {
		return err
	}
	if len(under.Roots) != len(s.Record.Roots) {
		return errors.New("it comes with a root that no trusted root has signed")
	}
	return nil
}
