package acl

import (
	"slices"
	"strings"
)

// support is what this version does with a key of the language.
type support uint8

const (
	read    support = iota // enforced, or checked
	refused                // belongs to the language but is not enforced, so it is refused: skipping a restriction would be a hole
	ignored                // a setting of another program that does not affect who may reach what
)

// keySpec describes one key of an object.
type keySpec struct {
	support  support
	required bool
	note     string // for ignored and refused keys: what happens here instead
	now      string // for old names: the current key
}

// The keys of the language.
var (
	topKeys = map[string]keySpec{
		"groups": {}, "hosts": {}, "tagOwners": {}, "ipsets": {}, "postures": {}, "defaultSrcPosture": {},
		"acls": {}, "grants": {}, "deny": {}, "enforcement": {}, "autoApprovers": {}, "nodeAttrs": {},
		"tests": {}, "ssh": {}, "sshTests": {}, "session": {}, "outage": {}, "node": {},
		"admission": {},

		"access": {support: refused, note: notEnforced},

		"randomizeClientPort": {support: ignored, note: "the port is chosen by each agent (--listen-port)"},
		"disableIPv4":         {support: ignored, note: "every node has an IPv4 and an IPv6 address"},
		"OneCGNATRoute":       {support: ignored, note: "every agent routes the ranges of the mesh, which are set when the coordinator first starts"},
		"derpMap":             {support: ignored, note: "relays are not taken from the policy"},
	}
	aclKeys = map[string]keySpec{
		"action": {required: true}, "src": {required: true}, "dst": {required: true}, "proto": {}, "srcPosture": {},
		"users": {now: "src"}, "ports": {now: "dst"},
		"#": {support: ignored, note: "keys that begin with # are notes of programs that edit policies"},
	}
	grantKeys = map[string]keySpec{
		"src": {required: true}, "dst": {required: true}, "ip": {}, "app": {}, "srcPosture": {}, "via": {}, "auth": {},
	}
	denyKeys = map[string]keySpec{
		"src": {required: true}, "dst": {required: true}, "ip": {required: true}, "srcPosture": {},
		"app": {support: refused, note: "cannot be denied: it permits nothing by itself; remove it from the grant"},
	}
	enforcementKeys = map[string]keySpec{
		"src": {required: true}, "dst": {required: true}, "mode": {required: true}, "until": {required: true},
	}
	approverKeys  = map[string]keySpec{"routes": {}, "exitNode": {}, "services": {support: refused, note: notEnforced}}
	nodeAttrKeys  = map[string]keySpec{"target": {required: true}, "attr": {}, "app": {}, "ipPool": {}}
	sessionKeys   = map[string]keySpec{"maxAge": {required: true}}
	authKeys      = map[string]keySpec{"age": {}, "mfa": {}}
	outageKeys    = map[string]keySpec{"grace": {}, "posture": {}}
	nodeKeys      = map[string]keySpec{"certLifetime": {}}
	admissionKeys = map[string]keySpec{"tags": {}, "groups": {}, "users": {}, "attestation": {}, "approval": {}}
	sshKeys       = map[string]keySpec{
		"action": {required: true}, "src": {}, "dst": {}, "users": {required: true},
		"checkPeriod": {}, "acceptEnv": {}, "srcPosture": {},
		"recorder": {support: refused, note: notEnforced}, "enforceRecorder": {support: refused, note: notEnforced},
	}
	sshTestKeys = map[string]keySpec{
		"src": {required: true}, "dst": {required: true}, "accept": {}, "deny": {}, "check": {}, "srcPostureAttrs": {},
	}
	testKeys = map[string]keySpec{
		"src": {required: true}, "accept": {}, "deny": {}, "proto": {}, "srcPostureAttrs": {},
		"user": {now: "src"}, "allow": {now: "accept"},
	}
)

// notEnforced ends the message about a key that belongs to the language but is not enforced by this version.
const notEnforced = "is not enforced by this version, which therefore refuses it rather than ignore it; remove it, or use a version that enforces it"

// fields reads an object with a fixed set of keys, and returns those that are to be read, under their current names.
func (p *parser) fields(v value, want string, keys map[string]keySpec) (map[string]member, bool) {
	members, ok := p.object(v, want)
	if !ok {
		return nil, false
	}
	out := make(map[string]member, len(members))
	seen := make(map[string]string, len(members)) // current name -> as it was written
	for _, m := range members {
		name, spec, known := find(m.key, keys)
		m.path = joinPath(v.path, name)
		before, twice := seen[name]
		seen[name] = m.key
		switch {
		case !known:
			p.keyErrorf(m, "unknown key %s; %s", quote(m.key), didYouMean(m.key, keys))
			continue
		case twice:
			p.keyErrorf(m, "%s means the same as %s above; keep one of the two", quote(m.key), quote(before))
			continue
		case spec.support == refused:
			p.keyErrorf(m, "%q %s", name, spec.note)
			continue
		case spec.support == ignored:
			p.report(Warning, p.keyPlace(m), "%q has no effect here: %s", name, spec.note)
			p.opaque(m.value)
			continue
		case name != m.key:
			p.report(Warning, p.keyPlace(m), "%s is read as %q; write it so", quote(m.key), name)
		}
		out[name] = m
	}
	for _, key := range sortedKeys(keys) {
		if _, given := seen[key]; keys[key].required && !given {
			p.errorf(v, "%q is missing; add it", key)
		}
	}
	return out, true
}

// find looks up a key, exactly or else ignoring case, as the programs that this language comes from do. Old names become
// current ones.
func find(key string, keys map[string]keySpec) (string, keySpec, bool) {
	spec, ok := keys[key]
	if note, notes := keys["#"]; notes && strings.HasPrefix(key, "#") {
		return key, note, true
	}
	if !ok {
		for name := range keys {
			if strings.EqualFold(name, key) {
				key, spec, ok = name, keys[name], true
				break
			}
		}
	}
	if spec.now != "" {
		return spec.now, keys[spec.now], true
	}
	return key, spec, ok
}

// didYouMean suggests a word that is one edit away, or lists the known words.
func didYouMean[V any](word string, words map[string]V) string {
	if near := nearest(word, words); near != "" {
		return "did you mean " + quote(near) + "?"
	}
	return "known are " + strings.Join(knownKeys(words), ", ")
}

// nearest returns the word that is one edit away from word or differs only in case, or "".
func nearest[V any](word string, words map[string]V) string {
	best := ""
	for w, x := range words {
		if spec, isKey := any(x).(keySpec); isKey && (spec.now != "" || w == "#") {
			continue
		}
		if (strings.EqualFold(w, word) || oneEdit(w, word)) && (best == "" || w < best) {
			best = w
		}
	}
	return best
}

// oneEdit reports whether a becomes b by inserting, deleting or replacing one character, or swapping two adjacent ones.
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

// knownKeys lists words for messages, without old names.
func knownKeys[V any](words map[string]V) []string {
	return slices.DeleteFunc(sortedKeys(words), func(w string) bool {
		spec, isKey := any(words[w]).(keySpec)
		return isKey && (spec.now != "" || w == "#")
	})
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
