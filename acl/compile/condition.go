package compile

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// cond is what a rule requires of its source besides its identity.
type cond struct {
	name     string // part of the names of derived sets
	postures []acl.Posture
	age      time.Duration // maximum age of the login; 0: any
	session  bool          // age is the default of the policy, which applies to people only
	mfa      bool
	deny     bool // the rule denies: unknown counts as true
}

// derived is a set of nodes made from another set, or from prefixes: those for which a condition holds.
type derived struct {
	base     string // empty: the nodes with an address in prefixes
	prefixes []netip.Prefix
	cond     *cond // nil: all of them
}

// condition returns what a rule requires, or nil.
func (p *Program) condition(r acl.Rule) *cond {
	c := &cond{deny: r.Action == acl.Deny}
	for _, name := range r.Postures {
		c.postures = append(c.postures, p.policy.Postures[name])
	}
	if r.Auth != nil {
		c.age, c.mfa = r.Auth.Age, r.Auth.MFA
	}
	if max := p.policy.Session.MaxAge; c.age == 0 && max > 0 && r.Action == acl.Allow {
		c.age, c.session = max, true
	}
	if len(c.postures) == 0 && c.age == 0 && !c.mfa {
		return nil
	}
	var terms []string
	if len(r.Postures) > 0 {
		terms = append(terms, strings.Join(r.Postures, "|"))
	}
	switch {
	case c.session:
		terms = append(terms, "session<="+shortly(c.age))
	case c.age > 0:
		terms = append(terms, "auth<="+shortly(c.age))
	}
	if c.mfa {
		terms = append(terms, "mfa")
	}
	c.name = " if " + strings.Join(terms, " ")
	if c.deny {
		c.name = " unless known not " + strings.Join(terms, " ")
	}
	return c
}

// of returns the name of the part of a set for which a condition holds.
func (c *cond) of(base string) string {
	if c == nil {
		return base
	}
	return bounded(base + c.name)
}

// bounded shortens the name of a set to what a netmap can carry, and keeps it unique.
func bounded(name string) string {
	if len(name) <= proto.MaxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	const shown = proto.MaxName - 2*8 - 1
	return strings.ToValidUTF8(name[:shown], "") + "#" + hex.EncodeToString(sum[:8])
}

// derive makes the sets that stand for the sides of a rule, besides those of the policy.
//
// If a rule has a condition, its source is the part of each set for which the condition holds. Literal addresses become a set of
// their nodes in each family. In a deny rule, naming one address of a node names both, so the nodes with such an address form a
// set in addition to the addresses.
func (p *Program) derive(r *rule) {
	if r.self {
		return // its sets are made for each user
	}
	for _, s := range r.src.sets {
		if r.cond != nil {
			name := r.cond.of(s)
			r.srcSets = append(r.srcSets, name)
			p.derived[name] = derived{base: s, cond: r.cond}
		}
	}
	if r.cond == nil {
		r.srcSets = r.src.sets
	}
	named := func(suffix string, prefixes []netip.Prefix, c *cond) string {
		if len(prefixes) == 0 {
			return ""
		}
		name := c.of(r.origin.Path + suffix)
		p.derived[name] = derived{prefixes: prefixes, cond: c}
		return name
	}
	switch src := r.src.nodePrefixes(p); {
	case r.action == proto.Deny:
		if set := named(".src", src, r.cond); set != "" {
			r.srcSets = append(slices.Clone(r.srcSets), set)
		}
		if set := named(".dst", r.dst.nodePrefixes(p), nil); set != "" {
			r.dstSets = []string{set}
		}
	case r.cond != nil:
		r.srcV4 = named(".src.v4", only(src, v4), r.cond)
		r.srcV6 = named(".src.v6", only(src, v6), r.cond)
	}
	slices.Sort(r.srcSets)
	r.dstSets = append(r.dstSets, r.dst.sets...)
	slices.Sort(r.dstSets)
}

// nodePrefixes returns the prefixes by which a side selects nodes by address.
func (s side) nodePrefixes(p *Program) []netip.Prefix {
	if s.everything {
		return all
	}
	var out []netip.Prefix
	for _, x := range s.prefixes {
		if p.mesh.V4.Overlaps(x) || p.mesh.V6.Overlaps(x) {
			out = append(out, x)
		}
	}
	if s.any {
		out = append(out, p.any...)
	}
	return out
}

// only returns the prefixes of some families.
func only(ps []netip.Prefix, in families) []netip.Prefix {
	if in == both {
		return ps
	}
	var out []netip.Prefix
	for _, p := range ps {
		if family(p.Addr())&in != 0 {
			out = append(out, p)
		}
	}
	return out
}

// facts looks up what is known about a node; ok is false for a fact that is not set.
type facts func(name string) (string, bool)

// factsOf returns the facts of a node at a moment. It computes the age of the user's login, in seconds.
func factsOf(n proto.Identity, set map[string]string, now time.Time) facts {
	return func(name string) (string, bool) {
		if name != authAge {
			v, ok := set[name]
			return v, ok
		}
		if n.User.AuthTime.IsZero() || now.IsZero() || !member(n) {
			return "", false
		}
		return strconv.FormatInt(int64(max(0, now.Sub(n.User.AuthTime))/time.Second), 10), true
	}
}

const (
	authAge     = "user:authAge"
	mfaFact     = "user:mfa"
	attestation = "device:attestation"
)

// truth is how far a condition is known to hold.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

// judge reports whether a condition holds for a node and, if it does not, what is missing.
func (c *cond) judge(n proto.Identity, f facts) (truth, string) {
	all, missing := yes, ""
	worse := func(t truth, why string) {
		if t < all {
			all, missing = t, why
		}
	}
	if len(c.postures) > 0 {
		worse(anyPosture(c.postures, f, c.deny))
	}
	if c.age > 0 && !(c.session && len(n.Tags) > 0) {
		worse(c.fresh(f))
	}
	if c.mfa {
		switch v, set := f(mfaFact); {
		case !set:
			worse(unknown, "needs a login with several factors: user:mfa is not set")
		case v != "true":
			worse(no, "needs a login with several factors")
		}
	}
	return all, missing
}

func (c *cond) fresh(f facts) (truth, string) {
	text, set := f(authAge)
	age, ok := seconds(text)
	switch {
	case !set || !ok:
		return unknown, fmt.Sprintf("needs a login at most %s old: user:authAge is not set; log in", shortly(c.age))
	case age > c.age.Seconds():
		return no, fmt.Sprintf("needs a login at most %s old; log in again", shortly(c.age))
	}
	return yes, ""
}

// holds reports whether a rule with the condition applies to a node.
func (c *cond) holds(n proto.Identity, f facts) (bool, string) {
	if c == nil {
		return true, ""
	}
	t, missing := c.judge(n, f)
	return t == yes || c.deny && t == unknown, missing
}

// anyPosture judges postures of which one must hold.
func anyPosture(ps []acl.Posture, f facts, deny bool) (truth, string) {
	best, missing := no, []string(nil)
	for _, p := range ps {
		t, why := yes, ""
		for _, c := range p.Conditions {
			if x, reason := judgeFact(c, f, deny); x < t {
				t, why = x, reason
			}
		}
		if t == yes {
			return yes, ""
		}
		best = max(best, t)
		missing = append(missing, fmt.Sprintf("needs %s: %s", p.Name, why))
	}
	return best, strings.Join(missing, "; or ")
}

// judgeFact judges one condition. In a deny rule, any condition on an unset fact is unknown.
func judgeFact(c acl.Condition, f facts, deny bool) (truth, string) {
	v, set := f(c.Fact)
	if !set {
		switch {
		case deny:
			return unknown, c.Fact + " is not set"
		case c.Op == acl.NotSet:
			return yes, ""
		case c.Op == acl.IsSet:
			return no, c.Fact + " is not set"
		}
		return unknown, c.Fact + " is not set"
	}
	is := unknown
	switch c.Op {
	case acl.IsSet, acl.NotSet:
		is = truthOf((c.Op == acl.IsSet) == set)
	case acl.In, acl.NotIn:
		is = truthOf(slices.ContainsFunc(c.Values, func(w string) bool { return equal(c.Fact, v, w) }) == (c.Op == acl.In))
	case acl.Equal, acl.NotEqual:
		is = truthOf(equal(c.Fact, v, c.Values[0]) == (c.Op == acl.Equal))
	default:
		if order, ok := compare(c.Fact, v, c.Values[0]); ok {
			is = truthOf(c.Op == acl.Less && order < 0 || c.Op == acl.LessOrEqual && order <= 0 ||
				c.Op == acl.Greater && order > 0 || c.Op == acl.GreaterOrEqual && order >= 0)
		}
	}
	if is == yes {
		return yes, ""
	}
	if c.Fact == authAge {
		return is, c.Text // the age itself changes all the time
	}
	return is, fmt.Sprintf("%s, and it is %q", c.Text, v)
}

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func equal(fact, a, b string) bool {
	if a == b {
		return true
	}
	order, ok := compare(fact, a, b)
	return ok && order == 0
}

// compare orders two values of a fact; ok is false if they have no order.
func compare(fact, a, b string) (int, bool) {
	switch {
	case fact == attestation:
		x, y := rank(a), rank(b)
		return cmp.Compare(x, y), x >= 0 && y >= 0
	case fact == authAge:
		x, okX := seconds(a)
		y, okY := seconds(b)
		return cmp.Compare(x, y), okX && okY
	case strings.HasSuffix(strings.ToLower(fact), "version"):
		return compareVersions(a, b)
	}
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	switch {
	case !finite(x) || !finite(y): // such as NaN, or too large
		return 0, false
	case errX == nil && errY == nil:
		return cmp.Compare(x, y), true
	}
	return compareVersions(a, b)
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// rank returns the strength of a kind of attestation, or -1.
func rank(level string) int {
	if level == "tpm-unverified" {
		level = "x509"
	}
	return slices.Index(acl.Attestations, level)
}

// compareVersions compares the numeric components of two texts, then what follows them as text; a version with a suffix comes
// before the same version without one. Missing components are zero.
func compareVersions(a, b string) (int, bool) {
	x, restX, okX := components(a)
	y, restY, okY := components(b)
	if !okX || !okY {
		return 0, false
	}
	for i := range max(len(x), len(y)) {
		var p, q uint64
		if i < len(x) {
			p = x[i]
		}
		if i < len(y) {
			q = y[i]
		}
		if p != q {
			return cmp.Compare(p, q), true
		}
	}
	if (restX == "") != (restY == "") {
		return cmp.Compare(len(restY), len(restX)), true
	}
	return cmp.Compare(restX, restY), true
}

// components returns the leading numbers of a version and what follows them.
func components(s string) (out []uint64, rest string, ok bool) {
	s = strings.TrimPrefix(s, "v")
	for {
		end := 0
		for end < len(s) && '0' <= s[end] && s[end] <= '9' {
			end++
		}
		n, err := strconv.ParseUint(s[:end], 10, 64)
		if err != nil {
			return out, s, len(out) > 0 && end == 0
		}
		out = append(out, n)
		if s = s[end:]; !strings.HasPrefix(s, ".") {
			return out, s, true
		}
		s = s[1:]
	}
}

// seconds parses a number of seconds, or a duration such as 90m or 7d.
func seconds(s string) (float64, bool) {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		return n, finite(n)
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		n *= 24 * 3600
		return n, err == nil && finite(n)
	}
	d, err := time.ParseDuration(s)
	return d.Seconds(), err == nil
}

// shortly formats a duration without trailing zero minutes and seconds.
func shortly(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ages returns the ages of a login at which the condition's truth may change.
func (c *cond) ages() []time.Duration {
	var out []time.Duration
	if c.age > 0 {
		out = append(out, c.age)
	}
	for _, p := range c.postures {
		for _, x := range p.Conditions {
			if x.Fact != authAge {
				continue
			}
			for _, v := range x.Values {
				if s, ok := seconds(v); ok && s >= 0 && s < 1e9 {
					out = append(out, time.Duration(s)*time.Second)
				}
			}
		}
	}
	return out
}
