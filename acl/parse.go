package acl

import "bytes"

// Parse reads a policy file. name is what messages call it. The policy is nil exactly if the diagnostics have errors; they
// are all of the file's, in its order, with warnings about keys that have no effect.
func Parse(name string, src []byte) (*Policy, Diagnostics) {
	p := newParser(name, bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")))
	p.file()
	if p.failed {
		return nil, p.diags.finish()
	}
	return p.policy, p.diags.finish()
}

// Check reads a policy file as Parse does and adds the warnings that reading it with understanding gives.
func Check(name string, src []byte) (*Policy, Diagnostics) {
	policy, diags := Parse(name, src)
	if policy == nil {
		return nil, diags
	}
	return policy, append(diags, pingWarnings(policy)...).finish()
}

func (p *parser) file() {
	root, ok := p.root()
	if !ok {
		return
	}
	f, ok := p.fields(root, "an object with the keys of a policy", topKeys)
	if !ok {
		return
	}
	// What defines names goes first, wherever it stands.
	for _, section := range []struct {
		key  string
		read func(value)
	}{
		{"groups", p.groups},
		{"hosts", p.hosts},
		{"tagOwners", p.tagOwners},
		{"acls", p.acls},
		{"grants", p.grants},
		{"tests", p.tests},
	} {
		if m, ok := f[section.key]; ok {
			section.read(m.value)
		}
	}
}
