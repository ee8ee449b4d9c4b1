package acl

import (
	"fmt"
	"slices"
	"strings"
)

// Admission is a requirement on machines before they may join, checked again for each certificate.
type Admission struct {
	Place
	Whom        []Selector // one of which must select the node; none means every node
	Attestation string     // minimum attestation of the machine, one of Attestations; empty means none is required
	Approval    bool       // an administrator must have approved the machine
}

// Bounds of admission.
const (
	maxAdmissions = 1_000
	maxWhom       = 1_000 // in one entry
)

// admission reads "admission": [{"tags": [...], "groups": [...], "users": [...], "attestation": "tpm", "approval": true}, ...].
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

// whom reads one of the lists of nodes that an entry applies to. An empty list would apply to nobody, which is hardly intended.
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

// level reads a kind of attestation. The lowest one, which every machine has, requires nothing.
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
