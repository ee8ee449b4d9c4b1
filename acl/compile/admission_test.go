package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

const admissionDefs = `"groups": {"group:eng": ["ann@example.com"]}, "tagOwners": {"tag:db": [], "tag:prod": []}, `

func TestDemands(t *testing.T) {
	inv := &compile.Memory{}
	inv.SetRoles("cid@example.com", "admin")
	prog := compile.New(parseAt(t, []byte(`{`+admissionDefs+`"admission": [
		{"tags": ["tag:prod"], "attestation": "x509"},
		{"tags": ["tag:prod", "tag:db"], "attestation": "tpm-unverified"},
		{"tags": ["tag:db"], "attestation": "tpm"},
		{"groups": ["group:eng"], "approval": true},
		{"groups": ["autogroup:admin"], "attestation": "measured"},
		{"users": ["bob@example.com", "user:*@example.org"], "attestation": "token", "approval": true},
		{"attestation": "token"}]}`)), testMesh)
	for who, want := range map[string]string{
		"tag:prod":                 "x509 by admission[0]",
		"tag:db":                   "tpm by admission[2]",
		"tag:db,tag:prod":          "tpm by admission[2]",
		"tag:other":                "token by admission[6]",
		"":                         "token by admission[6]",
		"ann@example.com":          "token by admission[6], approval by admission[3]",
		"bob@example.com":          "token by admission[5], approval by admission[5]",
		"dot@example.org":          "token by admission[5], approval by admission[5]",
		"cid@example.com":          "measured by admission[4]",
		"ann@example.com,tag:prod": "x509 by admission[0]", // tags replace the user of a node
	} {
		var n proto.Identity
		for word := range strings.SplitSeq(who, ",") {
			switch {
			case strings.HasPrefix(word, "tag:"):
				n.Tags = append(n.Tags, word)
			case word != "":
				n.User = proto.User{Issuer: proto.IssuerToken, Subject: word, Name: word}
			}
		}
		d := prog.Demands(inv, n)
		var got []string
		if d.Attestation != "" {
			got = append(got, d.Attestation+" by "+d.AttestationBy.Path)
		}
		if d.Approval {
			got = append(got, "approval by "+d.ApprovalBy.Path)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%q: %q, want %q", who, text, want)
		}
	}
	for _, none := range []*acl.Policy{nil, parseAt(t, []byte(`{}`))} {
		if d := compile.New(none, testMesh).Demands(inv, proto.Identity{}); d != (compile.Demand{}) {
			t.Errorf("a policy without admission asks for %+v", d)
		}
	}
}

// TestProves checks all pairs of levels.
func TestProves(t *testing.T) {
	rank := map[string]int{"none": 0, "token": 1, "x509": 2, "tpm-unverified": 2, "tpm": 3, "measured": 4}
	for _, has := range append([]string{"", "gold"}, acl.Attestations...) {
		if !(compile.Demand{}).Proves(has) {
			t.Errorf("%q is not enough where nothing is asked", has)
		}
		for _, needs := range acl.Attestations[1:] {
			if got := (compile.Demand{Attestation: needs}).Proves(has); got != (rank[has] >= rank[needs]) {
				t.Errorf("%q for %q: %v", has, needs, got)
			}
		}
	}
}

func TestUnadmitted(t *testing.T) {
	inv := inventory(five...)
	prog := compile.New(parseAt(t, []byte(`{`+admissionDefs+`"admission": [
		{"tags": ["tag:db"], "attestation": "tpm", "approval": true},
		{"groups": ["group:eng"], "approval": true},
		{"users": ["ann@example.com"], "attestation": "x509"}]}`)), testMesh)
	list := func() (out []string) {
		for _, u := range prog.Unadmitted(inv) {
			out = append(out, fmt.Sprintf("%s: %s", u.Node.ID, u.Lacks()))
		}
		return out
	}
	ann, db := proto.NodeID(1), proto.NodeID(3)
	inv.SetTraits(ann, compile.Traits{Facts: map[string]string{"device:attestation": "token"}})
	want := []string{fmt.Sprintf("%s: attested by token, not x509, not approved", ann), fmt.Sprintf("%s: attested by none, not tpm, not approved", db)}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("before (-want +got):\n%s", diff)
	}
	var warned []string
	for _, d := range compile.AdmissionWarnings(prog, inv) {
		warned = append(warned, d.Path+": "+d.Message)
	}
	n, _ := inv.Node(ann)
	m, _ := inv.Node(db)
	const no = "1 node does not satisfy it: no next certificate, and nothing passes when the one that there is ends: "
	want = []string{
		"admission[0]: " + no + m.Name + " (attested by none, not tpm, not approved)",
		"admission[1]: " + no + n.Name + " (not approved)",
		"admission[2]: " + no + n.Name + " (attested by token, not x509)",
	}
	if diff := cmp.Diff(want, warned); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	inv.SetTraits(ann, compile.Traits{Facts: map[string]string{"device:attestation": "tpm-unverified"}, Admitted: true})
	inv.SetTraits(db, compile.Traits{Facts: map[string]string{"device:attestation": "measured"}, Admitted: true})
	if left := list(); len(left) != 0 {
		t.Errorf("after: %v", left)
	}
}

// TestDemandsAddUp checks that what a policy requires of a node is the combination of what its entries require, in any order.
func TestDemandsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entry := rapid.Custom(func(t *rapid.T) string {
			var fields []string
			for key, of := range map[string][]string{
				"tags": {"tag:db", "tag:prod", "autogroup:tagged"}, "groups": {"group:eng", "autogroup:member"}, "users": {"ann@example.com", "user:*@example.com"},
			} {
				if named := rapid.SliceOfNDistinct(rapid.SampledFrom(of), 0, 2, rapid.ID).Draw(t, key); len(named) > 0 {
					fields = append(fields, fmt.Sprintf("%q: [%q]", key, strings.Join(named, `", "`)))
				}
			}
			fields = append(fields, fmt.Sprintf("%q: %q, %q: %v", "attestation", rapid.SampledFrom(acl.Attestations).Draw(t, "level"),
				"approval", rapid.Bool().Draw(t, "approval")))
			return strings.ReplaceAll("{"+strings.Join(fields, ", ")+"}", `\"`, `"`)
		})
		entries := rapid.SliceOfN(entry, 1, 5).Draw(t, "entries")
		node := rapid.SampledFrom([]proto.Identity{
			{Tags: []string{"tag:db"}},
			{Tags: []string{"tag:db", "tag:prod"}},
			{},
			{User: proto.User{Issuer: "i", Subject: "a", Name: "ann@example.com"}},
			{User: proto.User{Issuer: "i", Subject: "b", Name: "bob@example.com"}},
		}).Draw(t, "node")
		demands := func(entries ...string) compile.Demand {
			p, found := acl.Parse("test", []byte(`{`+admissionDefs+`"admission": [`+strings.Join(entries, ", ")+`]}`))
			if p == nil {
				t.Fatal(found.Format("test"))
			}
			return compile.New(p, testMesh).Demands(&compile.Memory{}, node)
		}
		all := demands(entries...)
		backwards := slices.Clone(entries)
		slices.Reverse(backwards)
		approval, turned := false, demands(backwards...)
		for _, has := range acl.Attestations {
			each := true
			for _, e := range entries {
				d := demands(e)
				each = each && d.Proves(has)
				approval = approval || d.Approval
			}
			if all.Proves(has) != each || turned.Proves(has) != each {
				t.Errorf("%s: one by one %v, together %v, backwards %v", has, each, all.Proves(has), turned.Proves(has))
			}
		}
		if all.Approval != approval || turned.Approval != approval {
			t.Errorf("approval %v, one by one %v", all.Approval, approval)
		}
	})
}
