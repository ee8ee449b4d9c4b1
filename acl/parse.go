package acl

import (
	"bytes"
	"time"
)

// Parse reads a policy file that may be in force already. Messages call it name. The policy is nil if and only if there are
// errors among the diagnostics, which are all those of the file, in its order, including warnings about keys without effect.
func Parse(name string, src []byte) (*Policy, Diagnostics) {
	policy, diags := parse(name, src, time.Time{})
	return policy, diags.finish()
}

// Check reads a policy file that is to take effect at now. Besides what Parse reports, it reports an error for anything that
// may not last that long from now, and warnings that need an understanding of the policy.
func Check(name string, src []byte, now time.Time) (*Policy, Diagnostics) {
	policy, diags := parse(name, src, now)
	if policy != nil {
		diags = append(diags, pingWarnings(policy)...)
	}
	return policy, diags.finish()
}

func parse(name string, src []byte, now time.Time) (*Policy, Diagnostics) {
	if len(src) > MaxSize {
		// Check the size before looking at the contents.
		p := newParser(name, nil, now)
		p.report(Error, Place{Pos: p.pos(0)}, "the file has %d bytes; a policy has at most %d", len(src), MaxSize)
		return nil, p.diags
	}
	p := newParser(name, bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")), now)
	p.file()
	if p.failed {
		return nil, p.diags
	}
	return p.policy, p.diags
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
	// What defines names is read first, wherever it is in the file.
	for _, section := range []struct {
		key  string
		read func(value)
	}{
		{"groups", p.groups},
		{"hosts", p.hosts},
		{"tagOwners", p.tagOwners},
		{"ipsets", p.ipsets},
		{"postures", p.postures},
		{"defaultSrcPosture", p.defaultPosture},
		{"acls", p.acls},
		{"grants", p.grants},
		{"deny", p.deny},
		{"enforcement", p.enforcement},
		{"autoApprovers", p.autoApprovers},
		{"nodeAttrs", p.nodeAttrs},
		{"tests", p.tests},
		{"ssh", p.ssh},
		{"sshTests", p.sshTests},
		{"session", p.session},
		{"outage", p.outage},
		{"node", p.node},
		{"admission", p.admission},
	} {
		if m, ok := f[section.key]; ok {
			section.read(m.value)
		}
	}
}
