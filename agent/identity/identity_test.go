package identity_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func TestCheck(t *testing.T) {
	m, other := identitytest.New(noon.Add(-time.Hour)), identitytest.New(noon.Add(-time.Hour))
	n, stranger := m.Machine(1, "web"), m.Machine(2, "db")
	for name, c := range map[string]struct {
		spoil func(*identity.Record)
		keys  *identitytest.Machine
		why   string
	}{
		"good":           {func(*identity.Record) {}, n, ""},
		"other keys":     {func(*identity.Record) {}, stranger, "a different device key"},
		"nothing":        {func(r *identity.Record) { r.Chain = nil }, n, "0 certificates"},
		"no roots":       {func(r *identity.Record) { r.Roots = nil }, n, "0 roots"},
		"too long":       {func(r *identity.Record) { r.Chain = make([][]byte, 6) }, n, "6 certificates"},
		"too many roots": {func(r *identity.Record) { r.Roots = make([][]byte, 9) }, n, "9 roots"},
		"no chain":       {func(r *identity.Record) { r.Chain = r.Chain[:1] }, n, "no chain"},
		"other root":     {func(r *identity.Record) { r.Roots = [][]byte{other.Root.Certificate().Raw} }, n, "another mesh"},
		"other mesh":     {func(r *identity.Record) { r.Mesh.ID = other.Mesh.ID }, n, "another mesh"},
		"other ranges":   {func(r *identity.Record) { r.Mesh.V6 = other.Mesh.V4 }, n, "not in the mesh's ranges"},
		"rubbish":        {func(r *identity.Record) { r.Chain[0] = []byte("rubbish") }, n, "malformed"},
		"rubbish root":   {func(r *identity.Record) { r.Roots[0] = []byte("rubbish") }, n, "root certificate"},
		"intermediate as a node": {
			func(r *identity.Record) { r.Chain[0] = m.Intermediate.Certificate().Raw }, n, "another role",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := m.Record(n, 1, noon, time.Hour)
			c.spoil(&r)
			self, err := identity.Check(r, c.keys.Device.Device(), c.keys.Node.Public())
			if c.why == "" {
				if err != nil || self.Node.ID != n.ID {
					t.Errorf("%v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v, want something with %q", err, c.why)
			}
		})
	}
	t.Run("another's node key", func(t *testing.T) {
		if _, err := identity.Check(m.Record(n, 1, noon, time.Hour), n.Device.Device(), stranger.Node.Public()); err == nil {
			t.Error("a certificate without this node's key was taken")
		}
	})
}

// TestTimeIsAnotherQuestion checks that an expired certificate is still this node's identity: it is shown in the status, and
// renewed.
func TestTimeIsAnotherQuestion(t *testing.T) {
	m := identitytest.New(noon.Add(-time.Hour))
	n := m.Machine(1, "web")
	self := m.Self(n, 1, noon, time.Minute)
	if _, err := self.Verifier.Node(self.Node.Raw, noon.Add(time.Hour)); err == nil {
		t.Error("the verifier takes it for good at any time")
	}
}

func TestFollows(t *testing.T) {
	m, other := identitytest.New(noon.Add(-time.Hour)), identitytest.New(noon.Add(-time.Hour))
	n := m.Machine(1, "web")
	old := m.Self(n, 5, noon, time.Hour)
	renamed := *n
	renamed.Name = "www"
	for name, c := range map[string]struct {
		next *identity.Self
		why  string
	}{
		"next":         {m.Self(n, 6, noon, time.Hour), ""},
		"the same":     {old, ""},
		"another name": {m.Self(&renamed, 6, noon, time.Hour), ""},
		"earlier":      {m.Self(n, 4, noon, time.Hour), "number 4 came after number 5"},
		"another node": {m.Self(m.Machine(2, "db"), 6, noon, time.Hour), "came for node"},
		"another mesh": {other.Self(n, 6, noon, time.Hour), "came for node"},
	} {
		err := c.next.Follows(old)
		if c.why == "" && err != nil || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

// TestRootsChange checks that roots may change if a trusted one has signed the next; a coordinator's word is not enough.
func TestRootsChange(t *testing.T) {
	m := identitytest.New(noon.Add(-time.Hour))
	n := m.Machine(1, "web")
	old := m.Self(n, 1, noon, time.Hour)
	second, stranger := m.Successor(noon.Add(-time.Hour)), m.Successor(noon.Add(-time.Hour))
	record := func(issuer *identitytest.Mesh, cross []byte, roots ...*identitytest.Mesh) identity.Record {
		r := issuer.Record(n, 2, noon, time.Hour)
		if cross != nil {
			r.Chain = append(r.Chain, cross)
		}
		r.Roots = nil
		for _, of := range roots {
			r.Roots = append(r.Roots, of.Root.Certificate().Raw)
		}
		return r
	}
	for name, c := range map[string]struct {
		record identity.Record
		taken  int // number of roots; 0: it does not follow
	}{
		"the new root, cross-signed":             {record(second, second.Cross, second, m), 2},
		"the new root alone":                     {record(second, second.Cross, second), 1},
		"the new root, and issued under the old": {record(m, second.Cross, m, second), 2},
		"nobody vouches":                         {record(second, nil, second, m), 0},
		"the coordinator's word alone":           {record(m, nil, m, second), 0},
		"another root than the one vouched for":  {record(m, second.Cross, m, stranger), 0},
	} {
		next, err := identity.Check(c.record, n.Device.Device(), n.Node.Public())
		if err == nil {
			err = next.Follows(old)
		}
		if (err == nil) != (c.taken > 0) {
			t.Errorf("%s: %v", name, err)
		}
		under, err := c.record.Under(old.Record.Roots)
		if c.taken > 0 && (err != nil || len(under.Roots) != c.taken) {
			t.Errorf("%s: %d roots are taken, %v", name, len(under.Roots), err)
		}
		if err == nil && slices.ContainsFunc(under.Roots, func(r []byte) bool { return bytes.Equal(r, stranger.Root.Certificate().Raw) }) {
			t.Errorf("%s: took a root that nobody vouches for", name)
		}
	}
	moved := second.Self(n, 3, noon, time.Hour)
	both := record(second, second.Cross, second, m)
	announced, err := identity.Check(both, n.Device.Device(), n.Node.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Follows(announced); err != nil {
		t.Errorf("under the second root alone, once that was taken: %v", err)
	}
	if err := moved.Follows(old); err == nil {
		t.Error("under a root that nobody announced")
	}
}

func TestCertificateIsJudgedAtItsEnd(t *testing.T) {
	m := identitytest.New(noon.Add(-time.Hour))
	n := m.Machine(1, "web")
	c, err := identity.Certificate(m.Self(n, 1, noon, time.Hour).Verifier, m.Issue(n, 9, noon.Add(-time.Hour), time.Minute, func(*cert.Node) {}))
	if err != nil || c.Sequence != 9 {
		t.Errorf("%v, %v", c, err)
	}
}
