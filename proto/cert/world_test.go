package cert_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

var start = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)

const day = 24 * time.Hour

// world is a mesh with its authorities, one node and one coordinator.
type world struct {
	mesh               proto.MeshID
	root, intermediate *cert.Authority
	device             key.DevicePrivate
	coordinator        key.DevicePrivate
	node               cert.Node
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{mesh: must(proto.NewMeshID(rand.Reader))(t)}
	w.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	w.intermediate = must(w.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	w.device = must(key.NewDevice(rand.Reader))(t)
	w.coordinator = must(key.NewDevice(rand.Reader))(t)
	w.node = cert.Node{
		Mesh: w.mesh,
		Identity: proto.Identity{
			ID: 42, Name: "web-1",
			Addrs: proto.Addrs{V4: netip.MustParseAddr("100.64.0.7"), V6: netip.MustParseAddr("fd00:1:2::7")},
			Tags:  []string{"tag:db", "tag:web"},
		},
		DNSName: "web-1.mesh.internal", Device: w.device.Device(),
		Keys:  []cert.NodeKey{{Public: nodeKey(t), NotBefore: start, NotAfter: start.Add(day)}},
		Level: cert.LevelToken, Sequence: 9, NotBefore: start, NotAfter: start.Add(time.Hour),
	}
	return w
}

func nodeKey(t testing.TB) key.NodePublic {
	t.Helper()
	return must(key.NewNode(rand.Reader))(t).Public()
}

func (w *world) issue(t testing.TB) []byte {
	t.Helper()
	return must(w.intermediate.IssueNode(rand.Reader, w.node))(t).Raw
}

func (w *world) issueCoordinator(t testing.TB) []byte {
	t.Helper()
	return must(w.intermediate.IssueCoordinator(rand.Reader, w.mesh, "c1", w.coordinator.Public(), start, day))(t)
}

func (w *world) verifier(t testing.TB) *cert.Verifier {
	t.Helper()
	return must(cert.NewVerifier(w.mesh, []*x509.Certificate{w.root.Certificate()}))(t)
}

// chain returns a leaf followed by its authorities.
func (w *world) chain(leaf []byte) [][]byte {
	return [][]byte{leaf, w.intermediate.Certificate().Raw, w.root.Certificate().Raw}
}

// signer returns an authority's key, to sign what an Authority refuses to sign.
func signer(t testing.TB, a *cert.Authority) crypto.Signer {
	t.Helper()
	return must(key.ParseDevicePEM(keyBlock(must(a.MarshalPEM())(t))))(t)
}

// forge creates a node certificate by hand; damage may change it before it is signed.
func (w *world) forge(t testing.TB, damage func(*x509.Certificate)) []byte {
	t.Helper()
	good := must(x509.ParseCertificate(w.issue(t)))(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "forged"},
		NotBefore: good.NotBefore, NotAfter: good.NotAfter,
		KeyUsage: good.KeyUsage, ExtKeyUsage: good.ExtKeyUsage,
		URIs: []*url.URL{good.URIs[0]}, DNSNames: good.DNSNames, IPAddresses: append([]net.IP{}, good.IPAddresses...),
	}
	for _, e := range good.Extensions {
		if e.Id.String() == nodeOID {
			template.ExtraExtensions = append(template.ExtraExtensions, e)
		}
	}
	damage(template)
	pub := good.PublicKey.(*ecdsa.PublicKey)
	return must(x509.CreateCertificate(rand.Reader, template, w.intermediate.Certificate(), pub, signer(t, w.intermediate)))(t)
}

const nodeOID = "2.25.1702281195.1"
