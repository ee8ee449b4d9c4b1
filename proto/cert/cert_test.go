package cert_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func keyBlock(b []byte) []byte {
	_, rest := pem.Decode(b)
	return b[:len(b)-len(rest)]
}

func TestNodeRoundTrip(t *testing.T) {
	w := newWorld(t)
	second := w.node
	second.Keys = append(slices.Clone(second.Keys), cert.NodeKey{Public: nodeKey(t), NotBefore: start, NotAfter: start.Add(2 * day)})
	person := w.node
	person.Tags = nil
	person.User = proto.User{Issuer: "https://login.example.com", Subject: "248289761001", Name: "ann@example.com", AuthTime: start.Add(-time.Hour)}
	unproven := person
	unproven.User = proto.User{Issuer: proto.IssuerToken, Subject: "ann@example.com", Name: "ann@example.com"}
	nobody := w.node
	nobody.Tags = nil
	most := w.node
	most.Sequence, most.Level, most.ID = 1<<64-1, cert.LevelMeasured, 1<<64-1
	most.Name = strings.Repeat("a", 63)
	most.DNSName = most.Name + "." + strings.Repeat("b.", 60) + "c"
	for name, n := range map[string]cert.Node{
		"tags": w.node, "two keys": second, "person": person, "person of a token": unproven, "nobody": nobody, "greatest": most,
	} {
		t.Run(name, func(t *testing.T) {
			der := must(w.intermediate.IssueNode(rand.Reader, n))(t).Raw
			got := must(w.verifier(t).PeerNode(w.chain(der), start))(t)
			if d := cmp.Diff(n, *got, cmpopts.IgnoreFields(cert.Node{}, "Raw", "Serial", "Signed"),
				cmpopts.EquateComparable(netip.Addr{}, key.DevicePublic{}, key.NodePublic{}), cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if !bytes.Equal(got.Raw, der) || len(got.Serial) != 32 {
				t.Errorf("raw or serial %s", got.Serial)
			}
			if len(der) > 1024 {
				t.Errorf("%d bytes", len(der))
			}
		})
	}
}

func TestHasKey(t *testing.T) {
	w := newWorld(t)
	k := w.node.Keys[0]
	for at, want := range map[time.Time]bool{
		start: true, start.Add(-cert.Skew): true, start.Add(-cert.Skew - 1): false,
		k.NotAfter.Add(cert.Skew): true, k.NotAfter.Add(cert.Skew + 1): false,
	} {
		if got := w.node.HasKey(k.Public, at); got != want {
			t.Errorf("at %s: %v", at, got)
		}
	}
	if w.node.HasKey(nodeKey(t), start) || w.node.HasKey(key.NodePublic{}, start) {
		t.Error("has a key that it has not")
	}
}

func TestValidity(t *testing.T) {
	w := newWorld(t)
	der := w.issue(t)
	v := w.verifier(t)
	if err := v.AddIntermediates([][]byte{w.intermediate.Certificate().Raw}); err != nil {
		t.Fatal(err)
	}
	end := start.Add(time.Hour)
	for at, want := range map[time.Time]error{
		start: nil, start.Add(-cert.Skew): nil, end: nil, end.Add(cert.Skew): nil,
		start.Add(-cert.Skew - 1): cert.ErrNotYetValid, end.Add(cert.Skew + 1): cert.ErrExpired,
		start.Add(-100 * day): cert.ErrNotYetValid, end.Add(100 * day): cert.ErrExpired, {}: cert.ErrNotYetValid,
	} {
		if _, err := v.Node(der, at); !errors.Is(err, want) {
			t.Errorf("at %s: got %v, want %v", at, err, want)
		}
	}
	for _, at := range []time.Time{start, end.Add(100 * day), start.Add(-cert.Skew - 1), {}} {
		if _, err := v.NodeOutOfTime(der, at); err != nil {
			t.Errorf("out of time, at %s: %v", at, err)
		}
		if _, err := v.PeerNodeOutOfTime(w.chain(der), at); err != nil {
			t.Errorf("peer out of time, at %s: %v", at, err)
		}
	}
}

// TestIssuerEnds checks that a leaf is invalid once its issuer has expired, even if it is dated beyond that.
func TestIssuerEnds(t *testing.T) {
	w := newWorld(t)
	der := w.forge(t, func(c *x509.Certificate) { c.NotAfter = start.Add(60 * day) })
	v := w.verifier(t)
	if _, err := v.PeerNode(w.chain(der), start.Add(29*day)); err != nil {
		t.Error(err)
	}
	if _, err := v.PeerNode(w.chain(der), start.Add(31*day)); !errors.Is(err, cert.ErrExpired) {
		t.Errorf("got %v", err)
	}
	der = w.forge(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = start.Add(40*day), start.Add(41*day) })
	if _, err := v.PeerNode(w.chain(der), start.Add(40*day)); !errors.Is(err, cert.ErrChain) {
		t.Errorf("issued after its issuer's end: got %v", err)
	}
}

// TestForged changes one detail at a time of a good node certificate.
func TestForged(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	uri := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = []*url.URL{must(url.Parse(s))(t)} }
	}
	id := w.node.ID.String()
	later := asn1.ObjectIdentifier{2, 25, 1702281195, 2}
	tests := map[string]struct {
		damage func(*x509.Certificate)
		want   error
	}{
		"as it is": {func(*x509.Certificate) {}, nil},
		"with a later extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: later, Value: []byte{5, 0}})
		}, nil},
		"with a critical one": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: later, Critical: true, Value: []byte{5, 0}})
		}, cert.ErrMalformed},
		"without the extension":     {func(c *x509.Certificate) { c.ExtraExtensions = nil }, cert.ErrExtension},
		"with a truncated one":      {func(c *x509.Certificate) { e := &c.ExtraExtensions[0]; e.Value = e.Value[:len(e.Value)-1] }, cert.ErrExtension},
		"with a trailing byte":      {func(c *x509.Certificate) { e := &c.ExtraExtensions[0]; e.Value = append(slices.Clone(e.Value), 0) }, cert.ErrExtension},
		"of another mesh":           {uri("spiffe://" + string(other.mesh) + "/node/" + id), cert.ErrMesh},
		"of a coordinator":          {uri("spiffe://" + string(w.mesh) + "/coordinator/c1"), cert.ErrRole},
		"of a relay":                {uri("spiffe://" + string(w.mesh) + "/relay/r1"), cert.ErrMalformed},
		"of no role":                {uri("spiffe://" + string(w.mesh)), cert.ErrRole},
		"of an unknown role":        {uri("spiffe://" + string(w.mesh) + "/admin/" + id), cert.ErrRole},
		"of a longer path":          {uri("spiffe://" + string(w.mesh) + "/node/" + id + "/x"), cert.ErrMalformed},
		"of a path that steps back": {uri("spiffe://" + string(w.mesh) + "/relay/../node/" + id), cert.ErrMalformed},
		"of an escaped path":        {uri("spiffe://" + string(w.mesh) + "/node/%6e" + id[1:]), cert.ErrMalformed},
		"with a query":              {uri("spiffe://" + string(w.mesh) + "/node/" + id + "?x"), cert.ErrMalformed},
		"with a user":               {uri("spiffe://x@" + string(w.mesh) + "/node/" + id), cert.ErrMalformed},
		"with a port":               {uri("spiffe://" + string(w.mesh) + ":1/node/" + id), cert.ErrMalformed},
		"of another scheme":         {uri("https://" + string(w.mesh) + "/node/" + id), cert.ErrMalformed},
		"of node zero":              {uri("spiffe://" + string(w.mesh) + "/node/n0000000000000"), cert.ErrMalformed},
		"of no node id":             {uri("spiffe://" + string(w.mesh) + "/node/c1"), cert.ErrMalformed},
		"with two URIs":             {func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, cert.ErrMalformed},
		"without URI":               {func(c *x509.Certificate) { c.URIs = nil }, cert.ErrMalformed},
		"with two DNS names":        {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "x.mesh.internal") }, cert.ErrMalformed},
		"without DNS name":          {func(c *x509.Certificate) { c.DNSNames = nil }, cert.ErrMalformed},
		"with a wildcard":           {func(c *x509.Certificate) { c.DNSNames = []string{"*.mesh.internal"} }, cert.ErrMalformed},
		"with a bare name":          {func(c *x509.Certificate) { c.DNSNames = []string{"web-1"} }, cert.ErrMalformed},
		"with an e-mail address":    {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} }, cert.ErrMalformed},
		"with a third address":      {func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IPv4(100, 64, 0, 8)) }, cert.ErrMalformed},
		"with one address":          {func(c *x509.Certificate) { c.IPAddresses = c.IPAddresses[:1] }, cert.ErrMalformed},
		"with exchanged addresses":  {func(c *x509.Certificate) { slices.Reverse(c.IPAddresses) }, cert.ErrMalformed},
		"that may sign":             {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, cert.ErrMalformed},
		"that may encipher keys":    {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }, cert.ErrMalformed},
		"that may serve":            {func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }, cert.ErrMalformed},
		"for any usage":             {func(c *x509.Certificate) { c.ExtKeyUsage = nil }, cert.ErrMalformed},
	}
	v := w.verifier(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n, err := v.PeerNode(w.chain(w.forge(t, test.damage)), start)
			if !errors.Is(err, test.want) || (err == nil) != (n != nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// TestRelaysAreNoNodes checks that a relay's certificate is not accepted as a node's, although a coordinator lets both in.
func TestRelaysAreNoNodes(t *testing.T) {
	w := newWorld(t)
	w.node.Relay = true
	leaf, v := w.issue(t), w.verifier(t)
	n, err := v.PeerNode(w.chain(leaf), start)
	if err != nil || !n.Relay {
		t.Fatalf("a coordinator reads it as %+v, %v", n, err)
	}
	if _, err := v.Node(leaf, start); !errors.Is(err, cert.ErrRole) {
		t.Errorf("a peer: %v", err)
	}
	if _, err := v.NodeOutOfTime(leaf, start); !errors.Is(err, cert.ErrRole) {
		t.Errorf("out of time: %v", err)
	}
}

func TestChains(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	node, coordinator := w.issue(t), w.issueCoordinator(t)
	intermediate, root := w.intermediate.Certificate().Raw, w.root.Certificate().Raw
	// An impostor with the same mesh id, as an attacker would create it.
	impostor := newWorld(t)
	impostor.mesh = w.mesh
	impostor.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	impostor.intermediate = must(impostor.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	impostor.node.Mesh = w.mesh
	// A leaf that has signed another leaf.
	sub := must(x509.ParseCertificate(node))(t)
	child := must(x509.CreateCertificate(rand.Reader, sub, sub, w.device.Public(), w.device))(t)

	tests := map[string]struct {
		chain [][]byte
		want  error
	}{
		"leaf, intermediate":          {[][]byte{node, intermediate}, nil},
		"leaf, intermediate, root":    {w.chain(node), nil},
		"something else beside it":    {[][]byte{node, {1, 2, 3}, impostor.intermediate.Certificate().Raw, intermediate}, nil},
		"nothing":                     {nil, cert.ErrMalformed},
		"too many":                    {[][]byte{node, intermediate, root, root, root, root}, cert.ErrMalformed},
		"a huge one":                  {[][]byte{make([]byte, 1<<20), intermediate}, cert.ErrMalformed},
		"garbage":                     {[][]byte{{1, 2, 3}, intermediate}, cert.ErrMalformed},
		"leaf alone":                  {[][]byte{node}, cert.ErrChain},
		"leaf, root":                  {[][]byte{node, root}, cert.ErrChain},
		"an intermediate as leaf":     {[][]byte{intermediate, root}, cert.ErrRole},
		"a root as leaf":              {[][]byte{root}, cert.ErrRole},
		"a coordinator as node":       {w.chain(coordinator), cert.ErrRole},
		"of another mesh":             {other.chain(other.issue(t)), cert.ErrMesh},
		"of an impostor's root":       {impostor.chain(impostor.issue(t)), cert.ErrChain},
		"under another intermediate":  {[][]byte{impostor.issue(t), intermediate}, cert.ErrChain},
		"signed by a node":            {[][]byte{child, node, intermediate}, cert.ErrChain},
		"with a changed signature":    {[][]byte{flip(node, len(node)-1), intermediate}, cert.ErrChain},
		"with a changed intermediate": {[][]byte{node, flip(intermediate, len(intermediate)-1)}, cert.ErrChain},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := w.verifier(t).PeerNode(test.chain, start); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}

	v := w.verifier(t)
	if id, err := v.Coordinator(w.chain(coordinator), start); err != nil || id != "c1" {
		t.Errorf("coordinator: %q, %v", id, err)
	}
	if _, err := v.Coordinator(w.chain(node), start); !errors.Is(err, cert.ErrRole) {
		t.Errorf("a node as coordinator: %v", err)
	}
	if _, err := v.Coordinator(w.chain(coordinator), start.Add(2*day)); !errors.Is(err, cert.ErrExpired) {
		t.Errorf("an expired coordinator: %v", err)
	}
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

// TestTwoRoots checks the replacement of a root: first both are trusted, then only the new one.
func TestTwoRoots(t *testing.T) {
	w := newWorld(t)
	next := newWorld(t)
	next.mesh, next.node.Mesh = w.mesh, w.mesh
	next.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	next.intermediate = must(next.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	both := must(cert.NewVerifier(w.mesh, []*x509.Certificate{w.root.Certificate(), next.root.Certificate()}))(t)
	for _, x := range []*world{w, next} {
		if _, err := both.PeerNode(x.chain(x.issue(t)), start); err != nil {
			t.Error(err)
		}
	}
	if _, err := next.verifier(t).PeerNode(w.chain(w.issue(t)), start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("the old root, when it is no more trusted: %v", err)
	}
	if both.Mesh() != w.mesh || len(both.Roots()) != 2 {
		t.Error("mesh or roots")
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	leaf := must(x509.ParseCertificate(w.issue(t)))(t)
	fake := must(x509.ParseCertificate(flip(w.root.Certificate().Raw, len(w.root.Certificate().Raw)-1)))(t)
	for name, roots := range map[string][]*x509.Certificate{
		"none": nil, "of another mesh": {other.root.Certificate()}, "an intermediate": {w.intermediate.Certificate()},
		"a leaf": {leaf}, "not signed by itself": {fake}, "too many": slices.Repeat([]*x509.Certificate{w.root.Certificate()}, 9),
	} {
		if _, err := cert.NewVerifier(w.mesh, roots); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if c, mesh, err := cert.ParseRoot(w.root.Certificate().Raw); err != nil || mesh != w.mesh || !c.Equal(w.root.Certificate()) {
		t.Errorf("parse a root: %v, %v", mesh, err)
	}
}

func TestIntermediates(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	v := w.verifier(t)
	good := w.intermediate.Certificate().Raw
	for name, bad := range map[string][]byte{
		"of another mesh": other.intermediate.Certificate().Raw, "a leaf": w.issue(t), "a root": w.root.Certificate().Raw,
		"garbage": {1}, "damaged": flip(good, len(good)-1),
	} {
		if err := v.AddIntermediates([][]byte{good, bad}); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := v.Node(w.issue(t), start); !errors.Is(err, cert.ErrChain) {
			t.Errorf("%s: the good one beside it was kept", name)
		}
	}
	if err := v.AddIntermediates(slices.Repeat([][]byte{good}, proto.MaxAuthorities+1)); !errors.Is(err, cert.ErrMalformed) {
		t.Errorf("too many: %v", err)
	}
	for range 2 {
		if err := v.AddIntermediates([][]byte{good, good}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Node(w.issue(t), start); err != nil {
		t.Error(err)
	}
}

// TestIntermediatesAreBounded checks that the number of intermediates is limited, and that those that expire first are evicted.
func TestIntermediatesAreBounded(t *testing.T) {
	w := newWorld(t)
	v := w.verifier(t)
	const kept = 128
	var all []*cert.Authority
	for i := range kept + 5 {
		a := must(w.root.NewIntermediate(rand.Reader, start, day+time.Duration(i)*time.Hour))(t)
		all = append(all, a)
		if err := v.AddIntermediates([][]byte{a.Certificate().Raw}); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range all {
		_, err := v.Node(must(a.IssueNode(rand.Reader, w.node))(t).Raw, start)
		if forgotten := i < 5; forgotten != errors.Is(err, cert.ErrChain) {
			t.Errorf("intermediate %d: %v", i, err)
		}
	}
}

func TestVerifierIsConcurrent(t *testing.T) {
	w := newWorld(t)
	v := w.verifier(t)
	node, coordinator := w.chain(w.issue(t)), w.chain(w.issueCoordinator(t))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := v.PeerNode(node, start); err != nil {
					t.Error(err)
				}
				if _, err := v.Coordinator(coordinator, start); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestIssueRefuses(t *testing.T) {
	w := newWorld(t)
	p := nodeKey(t)
	for name, damage := range map[string]func(n *cert.Node){
		"another mesh":       func(n *cert.Node) { n.Mesh = newWorld(t).mesh },
		"no device":          func(n *cert.Node) { n.Device = key.DevicePublic{} },
		"no keys":            func(n *cert.Node) { n.Keys = nil },
		"three keys":         func(n *cert.Node) { n.Keys = append(n.Keys, cert.NodeKey{Public: p, NotAfter: start}, cert.NodeKey{}) },
		"one key twice":      func(n *cert.Node) { n.Keys = append(n.Keys, n.Keys[0]) },
		"the zero key":       func(n *cert.Node) { n.Keys = []cert.NodeKey{{NotBefore: start, NotAfter: start.Add(1)}} },
		"key of no time":     func(n *cert.Node) { n.Keys = []cert.NodeKey{{Public: p, NotBefore: start, NotAfter: start}} },
		"no level":           func(n *cert.Node) { n.Level = 99 },
		"another DNS name":   func(n *cert.Node) { n.DNSName = "web-2.mesh.internal" },
		"no domain":          func(n *cert.Node) { n.DNSName = "web-1." },
		"no id":              func(n *cert.Node) { n.ID = 0 },
		"user and tags":      func(n *cert.Node) { n.User = proto.User{Issuer: "i", Subject: "s", Name: "n"} },
		"no time":            func(n *cert.Node) { n.NotAfter = n.NotBefore },
		"beyond its issuer":  func(n *cert.Node) { n.NotAfter = start.Add(31 * day) },
		"before its issuer":  func(n *cert.Node) { n.NotBefore = start.Add(-day) },
		"tags of great size": func(n *cert.Node) { n.Tags = []string{"tag:" + strings.Repeat("a", 100)} },
	} {
		n := w.node
		n.Keys = slices.Clone(n.Keys)
		damage(&n)
		if _, err := w.intermediate.IssueNode(rand.Reader, n); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if _, err := w.root.IssueNode(rand.Reader, w.node); err == nil {
		t.Error("a root issued a leaf")
	}
	if _, err := w.root.IssueCoordinator(rand.Reader, w.mesh, "c1", w.coordinator.Public(), start, day); err == nil {
		t.Error("a root issued a coordinator")
	}
	for _, id := range []string{"", "a/b", "A", strings.Repeat("a", 65), ".."} {
		if _, err := w.intermediate.IssueCoordinator(rand.Reader, w.mesh, id, w.coordinator.Public(), start, day); err == nil {
			t.Errorf("coordinator %q issued", id)
		}
	}
	if _, err := w.intermediate.NewIntermediate(rand.Reader, start, time.Hour); err == nil {
		t.Error("an intermediate made an intermediate")
	}
	if _, err := w.root.NewIntermediate(rand.Reader, start, 5000*day); err == nil {
		t.Error("an intermediate outlives its root")
	}
	if _, err := cert.NewRoot(rand.Reader, "mesh", start, day); err == nil {
		t.Error("a root of no mesh")
	}
}

func TestAuthorityPEM(t *testing.T) {
	w := newWorld(t)
	for _, a := range []*cert.Authority{w.root, w.intermediate} {
		text := must(a.MarshalPEM())(t)
		got := must(cert.ParseAuthority(text))(t)
		if !got.Certificate().Equal(a.Certificate()) || got.Mesh() != w.mesh {
			t.Error("another authority")
		}
		_, tail := pem.Decode(text)
		other := must(newWorld(t).root.MarshalPEM())(t)
		for name, bad := range map[string][]byte{
			"nothing": nil, "a key": keyBlock(text), "a certificate": tail, "too much": append(bytes.Clone(text), tail...),
			"exchanged": append(bytes.Clone(tail), keyBlock(text)...), "of two": append(keyBlock(other), tail...),
			"of a leaf": append(bytes.Clone(keyBlock(text)), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.issue(t)})...),
		} {
			if _, err := cert.ParseAuthority(bad); err == nil {
				t.Errorf("%s: taken", name)
			}
		}
	}
	got := must(cert.ParseAuthority(must(w.intermediate.MarshalPEM())(t)))(t)
	w.intermediate = got
	if _, err := w.verifier(t).PeerNode(w.chain(w.issue(t)), start); err != nil {
		t.Error(err)
	}
}

func TestOtherAlgorithms(t *testing.T) {
	w := newWorld(t)
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	if _, err := w.intermediate.IssueCoordinator(rand.Reader, w.mesh, "c1", &p384.PublicKey, start, day); err == nil {
		t.Error("issued to a P-384 key")
	}
	good := must(x509.ParseCertificate(w.issueCoordinator(t)))(t)
	template := &x509.Certificate{
		SerialNumber: good.SerialNumber, NotBefore: good.NotBefore, NotAfter: good.NotAfter,
		KeyUsage: good.KeyUsage, ExtKeyUsage: good.ExtKeyUsage, URIs: good.URIs,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, w.intermediate.Certificate(), &p384.PublicKey, signer(t, w.intermediate)))(t)
	if _, err := w.verifier(t).Coordinator(w.chain(der), start); !errors.Is(err, cert.ErrMalformed) {
		t.Errorf("P-384: %v", err)
	}
}

func TestLevels(t *testing.T) {
	order := []cert.Level{cert.LevelNone, cert.LevelToken, cert.LevelX509, cert.LevelTPM, cert.LevelMeasured}
	for i, a := range order {
		for k, b := range order {
			if a.AtLeast(b) != (i >= k) {
				t.Errorf("%s at least %s: %v", a, b, a.AtLeast(b))
			}
		}
		if got, err := cert.ParseLevel(a.String()); err != nil || got != a {
			t.Errorf("%s: %v, %v", a, got, err)
		}
	}
	if !cert.LevelX509.AtLeast(cert.LevelTPMUnverified) || !cert.LevelTPMUnverified.AtLeast(cert.LevelX509) || cert.LevelTPMUnverified.AtLeast(cert.LevelTPM) {
		t.Error("an unverified TPM is worth what x509 is")
	}
	if cert.Level(6).AtLeast(cert.LevelNone) || cert.LevelTPM.AtLeast(9) || cert.Level(6).Valid() {
		t.Error("unknown levels are worth nothing")
	}
	if _, err := cert.ParseLevel(strings.Repeat("x", 100)); err == nil || len(err.Error()) > 200 {
		t.Errorf("got %v", err)
	}
}
