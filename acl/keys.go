package acl

import (
	"slices"
	"strings"
)

// support says what this version does with a key of the language.
type support uint8

const (
	read    support = iota // enforced, or checked
	refused                // belongs to the language, is not enforced yet, and therefore refused
	ignored                // a setting of another program that changes nothing of who may reach what
)

// keySpec is one key of an object.
type keySpec struct {
	support  support
	required bool
	note     string // for ignored keys: what happens here instead
}

// The keys of the language. To enforce one more, read it and change it here.
var (
	topKeys = map[string]keySpec{
		"groups": {}, "hosts": {}, "tagOwners": {}, "acls": {}, "grants": {}, "tests": {},

		"ssh": {support: refused}, "sshTests": {support: refused}, "nodeAttrs": {support: refused},
		"autoApprovers": {support: refused}, "postures": {support: refused}, "defaultSrcPosture": {support: refused},
		"ipsets": {support: refused}, "deny": {support: refused}, "enforcement": {support: refused},
		"session": {support: refused}, "access": {support: refused}, "outage": {support: refused},
		"node": {support: refused}, "admission": {support: refused},

		"randomizeClientPort": {support: ignored, note: "the port is chosen by each agent (--listen-port)"},
		"disableIPv4":         {support: ignored, note: "every node has an IPv4 and an IPv6 address"},
		"OneCGNATRoute":       {support: ignored, note: "every agent routes the ranges of the mesh, which are set when the coordinator first starts"},
		"derpMap":             {support: ignored, note: "relays are not taken from the policy"},
	}
	aclKeys = map[string]keySpec{
		"action": {required: true}, "src": {required: true}, "dst": {required: true}, "proto": {},
		"srcPosture": {support: refused},
	}
	grantKeys = map[string]keySpec{
		"src": {required: true}, "dst": {required: true}, "ip": {},
		"app": {support: refused}, "srcPosture": {support: refused}, "via": {support: refused}, "auth": {support: refused},
	}
	testKeys = map[string]keySpec{
		"src": {required: true}, "accept": {}, "deny": {}, "proto": {},
		"srcPostureAttrs": {support: refused},
	}
)

// notEnforced ends the message on everything that belongs to the language and is not enforced by this version.
const notEnforced = "is not enforced by this version, which therefore refuses it rather than ignore it; remove it, or use a version that enforces it"

// fields reads an object whose keys are known, and returns those that are to be read.
func (p *parser) fields(v value, want string, keys map[string]keySpec) (map[string]member, bool) {
	members, ok := p.object(v, want)
	if !ok {
		return nil, false
	}
	out := make(map[string]member, len(members))
	for _, m := range members {
		spec, known := keys[m.key]
		switch {
		case !known:
			p.keyErrorf(m, "unknown key %s; %s", quote(m.key), didYouMean(m.key, keys))
		case spec.support == refused:
			p.keyErrorf(m, "%q %s", m.key, notEnforced)
		case spec.support == ignored:
			p.report(Warning, Place{Pos: p.pos(m.at), Path: m.path}, "%q has no effect here: %s", m.key, spec.note)
		default:
			out[m.key] = m
		}
	}
	for _, key := range sortedKeys(keys) {
		if !keys[key].required {
			continue
		}
		if !slices.ContainsFunc(members, func(m member) bool { return m.key == key }) {
			p.errorf(v, "%q is missing; add it", key)
		}
	}
	return out, true
}

// didYouMean suggests a word that is one slip away, or lists the words that there are.
func didYouMean[V any](word string, words map[string]V) string {
	if near := nearest(word, words); near != "" {
		return "did you mean " + quote(near) + "?"
	}
	return "known are " + strings.Join(sortedKeys(words), ", ")
}

// nearest is the word that is one edit away from, or differs only in case from word; empty where there is none.
func nearest[V any](word string, words map[string]V) string {
	best := ""
	for w := range words {
		if (strings.EqualFold(w, word) || oneEdit(w, word)) && (best == "" || w < best) {
			best = w
		}
	}
	return best
}

// oneEdit says whether a becomes b by one character more, less, other, or two neighbours exchanged.
func oneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) < len(b) {
		return a[i:] == b[i+1:]
	}
	if i == len(a) {
		return true
	}
	if a[i+1:] == b[i+1:] {
		return true
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
