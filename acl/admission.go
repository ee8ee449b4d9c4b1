package acl

import (
	"fmt"
	"slices"
	"strings"
)

// Admission is what is asked of a machine before it may be a node, and again with each certificate.
type Admission struct {
	Place
	Whom        []Selector // of which one must pick the node; none is every node
	Attestation string     // one of Attestations, of which the machine must prove at least this; empty: any
	Approval    bool       // an administrator must have approved the machine
}

// Bounds of admission.
const (
	maxAdmissions = 1_000
	maxWhom       = 1_000 // that one entry names
)

// admission reads "admission": [{"tags": ["tag:prod"], "groups": [...], "users": [...], "attestation": "tpm", "approval": true}, ...].
func (p *parser) admission(v value) {
	list, _ := p.list(v, "a list of requirements on machines")
	for i, e := range list {
		if i >= maxAdmissions {
			p.errorf(e, "more than %d entries; merge entries with the same requirements", maxAdmissions)
			return
		}
		before := len(p.diags)
		f, ok := p.fields(e, "an object with tags, groups or users, and attestation or approval", admissionKeys)
		if !ok {
			continue
		}
		a := Admission{Place: p.place(e)}
		for _, key := range []string{"tags", "groups", "users"} {
			if m, ok := f[key]; ok {
				a.Whom = append(a.Whom, p.whom(m, key)...)
			}
		}
		if len(a.Whom) > maxWhom {
			p.errorf(e, "names %d tags, groups and users; at most %d are read; put users into a group, or split the entry", len(a.Whom), maxWhom)
			continue
		}
		if m, ok := f["attestation"]; ok {
			a.Attestation = p.level(m.value)
		}
		if m, ok := f["approval"]; ok {
			a.Approval = p.boolean(m.value)
		}
		if a.Attestation == "" && !a.Approval && len(p.diags) == before {
			p.report(Warning, a.Place, `requires nothing; add "attestation", "approval": true or both, or remove the entry`)
		}
		p.policy.Admission = append(p.policy.Admission, a)
	}
}

// whom reads one of the lists of those whom an entry is about. An empty one would be about nobody, which is hardly meant.
func (p *parser) whom(m member, key string) (out []Selector) {
	where := map[string]use{"tags": inAdmissionTags, "groups": inAdmissionGroups, "users": inAdmissionUsers}[key]
	list, ok := p.list(m.value, "a list of "+key)
	if ok && len(list) == 0 {
		p.errorf(m.value, "is empty; name someone, or leave %q out: an entry without tags, groups and users applies to every node", key)
	}
	for _, v := range list {
		if s, ok := p.readSelector(v, where); ok {
			out = append(out, s)
		}
	}
	return out
}

// level reads a kind of attestation. The one that every machine has asks for nothing.
func (p *parser) level(v value) string {
	text, ok := p.str(v, "a kind of attestation such as tpm")
	if !ok {
		return ""
	}
	if !slices.Contains(Attestations, text) {
		kinds := make(map[string]struct{}, len(Attestations))
		for _, kind := range Attestations {
			kinds[kind] = struct{}{}
		}
		more := fmt.Sprintf("it is one of %s", strings.Join(Attestations, ", "))
		if near := nearest(text, kinds); near != "" {
			more = fmt.Sprintf("did you mean %q?", near)
		}
		p.errorf(v, "there is no attestation %s; %s", quote(text), more)
		return ""
	}
	if text == Attestations[0] {
		return ""
	}
	return text
}
