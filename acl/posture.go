package acl

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// postures reads "postures": {"posture:managed": ["node:os == 'linux'", ...], ...}.
func (p *parser) postures(v value) {
	members, ok := p.object(v, "an object of postures and their conditions")
	if !ok {
		return
	}
	for _, m := range members {
		name, ok := strings.CutPrefix(m.key, "posture:")
		if !ok || !word(name) {
			p.keyErrorf(m, "%s is not a posture; a posture is posture: and a name of letters, digits, -, _ and dots", quote(m.key))
			continue
		}
		posture := Posture{Place: p.keyPlace(m), Name: m.key}
		list, ok := p.list(m.value, `a list of conditions such as ["node:os == 'linux'"]`)
		if ok && len(list) == 0 {
			p.errorf(m.value, `is empty, so every node would satisfy it; write a condition such as "node:os == 'linux'"`)
		}
		if len(list) > maxConditions {
			p.errorf(m.value, "has %d conditions; at most %d are read", len(list), maxConditions)
			continue
		}
		for _, v := range list {
			text, ok := p.str(v, "a condition in quotes, such as node:os == 'linux'")
			if !ok {
				continue
			}
			c, err := parseCondition(text)
			if err != nil {
				p.errorf(v, "%v", err)
				continue
			}
			c.Place = p.place(v)
			if note := factNote(c.Fact); note != "" {
				p.report(Warning, c.Place, "%s %s", c.Fact, note)
			}
			posture.Conditions = append(posture.Conditions, c)
		}
		p.policy.Postures[m.key] = posture
	}
}

// Bounds of postures.
const (
	maxConditions = 64
	maxPostures   = 64 // in one rule
	maxFact       = 128
	maxFactValue  = 256
)

// defaultPosture reads "defaultSrcPosture": ["posture:managed"]: the postures of rules that name none.
func (p *parser) defaultPosture(v value) { p.standing = p.postureNames(v) }

// srcPosture returns the postures of a rule: those that it names, or else the default ones.
func (p *parser) srcPosture(f map[string]member) []string {
	if m, ok := f["srcPosture"]; ok {
		if names := p.postureNames(m.value); len(names) > 0 {
			return names
		}
	}
	return slices.Clone(p.standing)
}

// postureNames reads a list of postures, one of which must hold.
func (p *parser) postureNames(v value) []string {
	list, _ := p.list(v, `a list of postures such as ["posture:managed"]`)
	if len(list) > maxPostures {
		p.errorf(v, "names %d postures; at most %d are read", len(list), maxPostures)
		return nil
	}
	var out []string
	for _, e := range list {
		name, ok := p.str(e, "the name of a posture")
		if !ok {
			continue
		}
		if _, defined := p.policy.Postures[name]; !defined {
			p.errorf(e, "%v", undefined("posture", name, "postures", wanted(p, p.policy.Postures)))
			continue
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// facts reads "srcPostureAttrs": {"node:os": "linux", "custom:score": 7}: what the source of a test is assumed to have.
func (p *parser) facts(f map[string]member) map[string]string {
	m, ok := f["srcPostureAttrs"]
	if !ok {
		return nil
	}
	members, ok := p.object(m.value, "an object of facts and their values")
	if !ok {
		return nil
	}
	out := make(map[string]string, len(members))
	for _, m := range members {
		if err := CheckFact(m.key); err != nil {
			p.keyErrorf(m, "%v", err)
			continue
		}
		lit, ok := m.Value.Value.(hujson.Literal)
		if !ok || lit.Kind() == 'n' {
			p.errorf(m.value, "is %s; want a string, a number, true or false", kindName(m.Value))
			continue
		}
		text := lit.String() // for a string, the text within the quotes
		if len(text) > maxFactValue {
			p.errorf(m.value, "is longer than %d bytes, which no fact can be", maxFactValue)
			continue
		}
		out[m.key] = text
	}
	return out
}

// The facts of closed namespaces. Those with a note are never set here.
var (
	closedFacts = map[string]string{
		"node:os": "", "node:osVersion": "", "node:version": "", "node:hostname": "",
		"device:attestation": "", "user:mfa": "", "user:authAge": "",
		"node:tsVersion": "is never set here; what this program calls the version of the agent is node:version",

		"node:tsReleaseTrack": neverSet, "node:tsAutoUpdate": neverSet, "node:tsStateEncrypted": neverSet,
		"ip:country": neverSet,
	}
	openFacts = []string{"custom", "posture"}
)

const neverSet = "is never set here, so every comparison with it is false"

// CheckFact returns an error if a text is not the name of a fact.
func CheckFact(fact string) error {
	space, name, ok := strings.Cut(fact, ":")
	if !ok || !word(space) || !word(strings.ReplaceAll(name, ":", ".")) || len(fact) > maxFact {
		return fmt.Errorf("%s is not a fact; a fact is written node:os, posture:diskEncrypted or custom:NAME", quote(fact))
	}
	if _, known := closedFacts[fact]; known {
		return nil
	}
	for known := range closedFacts {
		if s, _, _ := strings.Cut(known, ":"); s == space {
			return fmt.Errorf("there is no fact %s; %s", quote(fact), didYouMean(fact, closedFacts))
		}
	}
	return nil
}

// factNote returns why a fact is of no use here, or "" if it is.
func factNote(fact string) string {
	space, _, _ := strings.Cut(fact, ":")
	if note, closed := closedFacts[fact]; closed || slices.Contains(openFacts, space) {
		return note
	}
	return neverSet
}

// The operators as they are written, each before any that is a prefix of it.
var operators = []struct {
	text string
	op   Operator
}{
	{"==", Equal},
	{"!=", NotEqual},
	{"<=", LessOrEqual},
	{">=", GreaterOrEqual},
	{"<", Less},
	{">", Greater},
	{"NOT IN", NotIn},
	{"NOT SET", NotSet},
	{"IS SET", IsSet},
	{"IN", In},
}

// String returns the operator as it is written.
func (o Operator) String() string {
	for _, x := range operators {
		if x.op == o {
			return x.text
		}
	}
	return "?"
}

// parseCondition parses "node:os == 'linux'", "custom:tier IN ['gold', 'silver']" or "posture:edr IS SET".
func parseCondition(text string) (Condition, error) {
	c := Condition{Text: text}
	s := strings.TrimSpace(text)
	end := strings.IndexAny(s, " \t=!<>")
	if end < 0 {
		end = len(s)
	}
	c.Fact, s = s[:end], strings.TrimSpace(s[end:])
	if err := CheckFact(c.Fact); err != nil {
		return c, err
	}
	for _, o := range operators {
		if rest, ok := cutWords(s, o.text); ok {
			c.Op, s = o.op, strings.TrimSpace(rest)
			break
		}
	}
	var err error
	switch c.Op {
	case IsSet, NotSet:
		if s != "" {
			err = fmt.Errorf("%s has extra text after %s; remove it", quote(text), c.Op)
		}
	case In, NotIn:
		if c.Values, err = parseValues(s); err != nil {
			err = fmt.Errorf("%s: %w", quote(text), err)
		}
	case 0:
		err = fmt.Errorf("%s has no operator; want ==, !=, <, <=, >, >=, IN, NOT IN, IS SET or NOT SET after %s", quote(text), quote(c.Fact))
	default:
		value, rest, valueErr := parseValue(s)
		switch {
		case valueErr != nil:
			err = fmt.Errorf("%s: %w", quote(text), valueErr)
		case rest != "":
			err = fmt.Errorf("%s has extra text after its value; write one condition per string", quote(text))
		}
		c.Values = []string{value}
	}
	if err == nil && c.Fact == "device:attestation" {
		err = checkAttestation(c)
	}
	return c, err
}

// Attestations are the values of device:attestation, from weakest to strongest; x509 and tpm-unverified are equally strong.
var Attestations = []string{"none", "token", "x509", "tpm-unverified", "tpm", "measured"}

func checkAttestation(c Condition) error {
	for _, v := range c.Values {
		if !slices.Contains(Attestations, v) {
			return fmt.Errorf("device:attestation is never %s; it is one of %s", quote(v), strings.Join(Attestations, ", "))
		}
	}
	return nil
}

// cutWords removes an operator from the front, with any space between its words.
func cutWords(s, op string) (string, bool) {
	isWord := letter(op[0])
	for part := range strings.FieldsSeq(op) {
		rest, ok := strings.CutPrefix(strings.TrimLeft(s, " \t"), part)
		if !ok || isWord && rest != "" && !strings.ContainsRune(" \t[", rune(rest[0])) {
			return "", false
		}
		s = rest
	}
	return s, true
}

// parseValue parses a string in quotes of either kind, a number, true or false, and returns what follows it.
func parseValue(s string) (value, rest string, err error) {
	if s != "" && (s[0] == '\'' || s[0] == '"') {
		end := strings.IndexByte(s[1:], s[0])
		if end < 0 {
			return "", "", errors.New("a string is not terminated; close its quotes")
		}
		value, rest = s[1:1+end], s[end+2:]
	} else {
		end := strings.IndexAny(s, " \t,]")
		if end < 0 {
			end = len(s)
		}
		value, rest = s[:end], s[end:]
		if value != "true" && value != "false" && !number(value) {
			return "", "", fmt.Errorf("%s is not a value; write a string in quotes, a number, true or false", quote(value))
		}
	}
	if len(value) > maxFactValue {
		return "", "", fmt.Errorf("a value is longer than %d bytes, which no fact can be", maxFactValue)
	}
	return value, strings.TrimSpace(rest), nil
}

// number reports whether a text is a decimal number.
func number(s string) bool {
	whole, fraction, hasFraction := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	return digits(whole) && (!hasFraction || digits(fraction))
}

// parseValues parses ['a', 'b'].
func parseValues(s string) ([]string, error) {
	s, ok := strings.CutPrefix(s, "[")
	if !ok {
		return nil, errors.New("want a list such as ['linux', 'macos'] after IN")
	}
	var out []string
	for {
		value, rest, err := parseValue(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		out = append(out, value)
		if rest == "]" {
			return out, nil
		}
		if s, ok = strings.CutPrefix(rest, ","); !ok {
			return nil, errors.New("the list does not end with ], or a comma is missing")
		}
		if strings.TrimSpace(s) == "]" {
			return out, nil
		}
	}
}
