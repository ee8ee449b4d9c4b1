package directory

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Limits of facts.
const (
	MaxFacts   = 64  // that administrators set, per node; as many again that the node reports about its health
	MaxFact    = 256 // bytes of a value
	MinFactTTL = time.Second
	MaxFactTTL = 366 * 24 * time.Hour
)

// Sources of facts other than administrators.
const (
	SourceNode        = "node"        // the node itself, when it connects and renews
	SourceCoordinator = "coordinator" // the last attestation
)

// Facts that administrators cannot set.
const (
	factOS          = "node:os"
	factOSVersion   = "node:osVersion"
	factVersion     = "node:version"
	factHostname    = "node:hostname"
	factAttestation = "device:attestation"
	factSecureBoot  = "posture:secureBoot"
)

// Fact is something known about a node.
type Fact struct {
	Name, Value string
	Source      string // SourceNode, SourceCoordinator, or the administrator who set it
	Set         time.Time
	Expires     time.Time // zero: never
	// TTL is how long a posture fact holds after the node was last heard; Expires is zero while the node is attached. For other
	// facts it is zero: whatever else nodes report holds until they report something different.
	TTL time.Duration
}

// over reports whether the fact has expired.
func (f Fact) over(now time.Time) bool { return !f.Expires.IsZero() && !now.Before(f.Expires) }

// Traits is what is known about a node besides its identity. Values are shared and never change.
type Traits struct {
	Facts []Fact // sorted by name
	// Advertised are the routes the node offers, Approved those an administrator approved by hand; both sorted.
	Advertised, Approved []netip.Prefix

	// all is the policy's view while nothing has expired.
	all compile.Traits
	// ends is when the first of Facts expires; zero means never.
	ends time.Time
}

// Reported is what a node reports about itself.
type Reported struct {
	OS, OSVersion string
	Version       string // of the program
	Hostname      string
	Routes        []netip.Prefix // offered by the node
}

// check sorts the routes, and refuses those that no node may offer.
func (r *Reported) check(m proto.Mesh) error {
	routes, err := CheckRoutes(r.Routes, m)
	r.Routes = routes
	return err
}

// CheckRoutes returns the routes sorted, and refuses those that no node may offer or be approved for.
func CheckRoutes(in []netip.Prefix, m proto.Mesh) ([]netip.Prefix, error) {
	if len(in) > proto.MaxRoutes {
		return nil, fmt.Errorf("%d routes: at most %d: %w", len(in), proto.MaxRoutes, ErrInvalid)
	}
	out := slices.Clone(in)
	slices.SortFunc(out, proto.ComparePrefix)
	out = slices.Compact(out)
	for _, p := range out {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked():
			return nil, fmt.Errorf("route %v: want a network such as 10.33.0.0/16, without bits beyond its length: %w", p, ErrInvalid)
		case p.Bits() > 0 && (p.Overlaps(m.V4) || p.Overlaps(m.V6)):
			return nil, fmt.Errorf("route %v overlaps the mesh's own addresses (%v, %v): %w", p, m.V4, m.V6, ErrInvalid)
		}
	}
	return out, nil
}

// facts returns the facts that policies can use: values that no policy could compare with are omitted.
func (r *Reported) facts(now time.Time) []Fact {
	var out []Fact
	for _, f := range []struct{ name, value string }{
		{factHostname, r.Hostname},
		{factOS, osName(r.OS)},
		{factOSVersion, r.OSVersion},
		{factVersion, r.Version},
	} {
		if proto.ValidText(f.value, MaxFact) {
			out = append(out, Fact{Name: f.name, Value: f.value, Source: SourceNode, Set: now})
		}
	}
	return out
}

// osName returns the name that policies use for an operating system.
func osName(goos string) string {
	if goos == "darwin" {
		return "macos"
	}
	return goos
}

// same reports whether a report adds nothing to what is known.
func (t *Traits) same(r *Reported) bool {
	if t == nil {
		return false
	}
	want := r.facts(time.Time{})
	n := 0
	for _, f := range t.Facts {
		if f.Source != SourceNode || f.health() {
			continue
		}
		if n == len(want) || want[n].Name != f.Name || want[n].Value != f.Value {
			return false
		}
		n++
	}
	return n == len(want) && slices.Equal(t.Advertised, r.Routes)
}

// with returns the traits after a report.
func (t *Traits) with(r *Reported, now time.Time) *Traits {
	next := t.clone()
	next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool { return f.Source == SourceNode && !f.health() })
	for _, f := range r.facts(now) {
		if t != nil {
			if old, ok := t.fact(f.Name); ok && old.Value == f.Value {
				f = old
			}
		}
		next.Facts = append(next.Facts, f)
	}
	next.Advertised = r.Routes
	return next
}

func (t *Traits) clone() *Traits {
	if t == nil {
		return &Traits{}
	}
	return &Traits{Facts: slices.Clone(t.Facts), Advertised: t.Advertised, Approved: t.Approved}
}

func sortFacts(fs []Fact) {
	slices.SortFunc(fs, func(a, b Fact) int { return cmp.Compare(a.Name, b.Name) })
}

func (t *Traits) fact(name string) (Fact, bool) {
	i := slices.IndexFunc(t.Facts, func(f Fact) bool { return f.Name == name })
	if i < 0 {
		return Fact{}, false
	}
	return t.Facts[i], true
}

// routes reports whether the node may be a subnet router.
func (t *Traits) routes() bool { return len(t.Advertised)+len(t.Approved) > 0 }

func (t *Traits) empty() bool { return len(t.Facts)+len(t.Advertised)+len(t.Approved) == 0 }

// complete precomputes what is asked for often. It is called once, before the value is shared.
func (t *Traits) complete(level cert.Level) *Traits {
	t.ends = time.Time{}
	for _, f := range t.Facts {
		if !f.Expires.IsZero() && (t.ends.IsZero() || f.Expires.Before(t.ends)) {
			t.ends = f.Expires
		}
	}
	t.all = t.at(time.Time{}, level)
	return t
}

// at returns the policy's view at a time; the zero time is before everything.
func (t *Traits) at(now time.Time, level cert.Level) compile.Traits {
	proven := attested(level).Facts
	facts := maps.Clone(proven)
	for _, f := range t.Facts {
		if _, better := proven[f.Name]; !better && !f.over(now) {
			facts[f.Name] = f.Value
		}
	}
	return compile.Traits{Facts: facts, Advertised: t.Advertised, Approved: t.Approved}
}

// attestations are the traits of nodes about which only the attestation level is known.
var attestations = func() (out []compile.Traits) {
	for l := cert.LevelNone; l.Valid(); l++ {
		facts := map[string]string{factAttestation: l.String()}
		if l == cert.LevelMeasured {
			facts[factSecureBoot] = "true" // proved by its log of measured boot
		}
		out = append(out, compile.Traits{Facts: facts})
	}
	return out
}()

func attested(l cert.Level) compile.Traits { return attestations[l] }

// Traits returns what policies know about a node besides its identity, without expired facts.
func (s *Snapshot) Traits(id proto.NodeID) compile.Traits {
	n, ok := s.Lookup(id)
	if !ok || !s.state.seen(n) {
		return compile.Traits{}
	}
	var out compile.Traits
	t, ok := s.state.traits.Get(id)
	switch {
	case !ok:
		out = attested(n.Level)
	case t.ends.IsZero() || s.now.Before(t.ends):
		out = t.all
	default:
		out = t.at(s.now, n.Level)
	}
	out.Admitted = n.Verdict.approved()
	return out
}

// Known returns what is known about a node, revoked or not, for people: the unexpired facts, including the one from its
// attestation.
func (s *Snapshot) Known(id proto.NodeID) Traits {
	n, ok := s.Lookup(id)
	if !ok {
		return Traits{}
	}
	var out Traits
	if t, ok := s.state.traits.Get(id); ok {
		out = *t.clone()
	}
	proven := attested(n.Level).Facts
	out.Facts = slices.DeleteFunc(out.Facts, func(f Fact) bool {
		_, better := proven[f.Name]
		return better || f.over(s.now)
	})
	for name, value := range proven {
		out.Facts = append(out.Facts, Fact{Name: name, Value: value, Source: SourceCoordinator, Set: n.Attestation.Since})
	}
	sortFacts(out.Facts)
	return out
}

// Alike reports whether a node looks the same to every policy in two snapshots, apart from its certificate.
func Alike(before, after *Snapshot, id proto.NodeID) bool {
	old, was := before.Lookup(id)
	n, is := after.Lookup(id)
	if !was || !is || old.Barred() != n.Barred() || old.Apart() != n.Apart() || before.Lapsed(id) != after.Lapsed(id) {
		return false
	}
	if old.Level != n.Level || old.Name != n.Name || old.User != n.User || !slices.Equal(old.Tags, n.Tags) {
		return false
	}
	t, _ := before.state.traits.Get(id)
	next, _ := after.state.traits.Get(id)
	if t != next || !slices.Equal(before.Roles(n.User.Name), after.Roles(n.User.Name)) {
		return false
	}
	at := before.Moment(id)
	return at.IsZero() || after.now.Before(at)
}

// Routers yields the nodes that advertise or have approved routes, sorted by id.
func (s *Snapshot) Routers() iter.Seq[proto.NodeID] { return values(s.state.routers) }

// Report stores what a node reports about itself. It costs nothing if nothing changed.
func (d *Directory) Report(ctx context.Context, id proto.NodeID, r Reported) error {
	snap := d.Snapshot()
	if err := r.check(snap.Mesh()); err != nil {
		return fmt.Errorf("node %s: %w", id, err)
	}
	if t, _ := snap.state.traits.Get(id); t.same(&r) {
		return nil
	}
	return d.do(ctx, func(t *tx) error {
		n, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		old, _ := t.traits.Get(id)
		if old.same(&r) {
			return nil
		}
		return t.setTraits(n, old.with(&r, t.now))
	})
}

// CheckFactName returns an error if administrators cannot set a fact with this name.
func CheckFactName(name string) error {
	if err := acl.CheckFact(name); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if !strings.HasPrefix(name, "custom:") {
		return fmt.Errorf("fact %.80q: only facts called custom:NAME can be set: %w", name, ErrInvalid)
	}
	return nil
}

// SetFact sets a fact of a node for ttl; 0 means forever.
func (d *Directory) SetFact(ctx context.Context, id proto.NodeID, name, value string, ttl time.Duration, by string) (*Node, error) {
	if err := CheckFactName(name); err != nil {
		return nil, err
	}
	if !proto.ValidText(value, MaxFact) {
		return nil, fmt.Errorf("value of %s: want 1 to %d bytes of printable text: %w", name, MaxFact, ErrInvalid)
	}
	if ttl != 0 && (ttl < MinFactTTL || ttl > MaxFactTTL) {
		return nil, fmt.Errorf("%s for %v: want %v to %v, or no time at all: %w", name, ttl, MinFactTTL, MaxFactTTL, ErrInvalid)
	}
	return d.changeTraits(ctx, id, func(t *tx, n *Node, next *Traits) error {
		f := Fact{Name: name, Value: value, Source: by, Set: t.now}
		until := "for good"
		if ttl != 0 {
			f.Expires = t.now.Add(ttl)
			until = "until " + f.Expires.Format(time.RFC3339)
		}
		next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool { return f.Name == name })
		custom := 0
		for _, f := range next.Facts {
			if f.Source != SourceNode {
				custom++
			}
		}
		if custom >= MaxFacts {
			return fmt.Errorf("node %s has %d facts already, at most %d; unset some first: %w", n.Name, custom, MaxFacts, ErrInvalid)
		}
		next.Facts = append(next.Facts, f)
		t.recordOf(n.User.Name, by, audit.FactSet, n.ID.String(), n.Name, name+" = "+value+" "+until)
		return nil
	})
}

// UnsetFact removes a fact that an administrator set. It fails if the fact is not set, since the name may be mistyped.
func (d *Directory) UnsetFact(ctx context.Context, id proto.NodeID, name, by string) (*Node, error) {
	if err := CheckFactName(name); err != nil {
		return nil, err
	}
	return d.changeTraits(ctx, id, func(t *tx, n *Node, next *Traits) error {
		before := len(next.Facts)
		next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool { return f.Name == name })
		if len(next.Facts) == before {
			return fmt.Errorf("node %s has no %s: %w", n.Name, name, ErrInvalid)
		}
		t.recordOf(n.User.Name, by, audit.FactUnset, n.ID.String(), n.Name, name)
		return nil
	})
}

// ApproveRoutes replaces the routes of a node that are approved by hand; an empty list withdraws all approvals. A route may be
// approved before the node offers it.
func (d *Directory) ApproveRoutes(ctx context.Context, id proto.NodeID, routes []netip.Prefix, by string) (*Node, error) {
	routes, err := CheckRoutes(routes, d.Snapshot().Mesh())
	if err != nil {
		return nil, err
	}
	return d.changeTraits(ctx, id, func(t *tx, n *Node, next *Traits) error {
		if slices.Equal(next.Approved, routes) {
			return nil
		}
		next.Approved = routes
		words := make([]string, len(routes))
		for i, p := range routes {
			words[i] = p.String()
		}
		t.recordOf(n.User.Name, by, audit.RoutesApprove, n.ID.String(), n.Name, cmp.Or(strings.Join(words, " "), "none"))
		return nil
	})
}

// changeTraits changes a copy of a trusted node's traits and writes it.
func (d *Directory) changeTraits(ctx context.Context, id proto.NodeID, change func(*tx, *Node, *Traits) error) (*Node, error) {
	var n *Node
	err := d.do(ctx, func(t *tx) (err error) {
		if n, err = t.trustedNode(id); err != nil {
			return err
		}
		old, _ := t.traits.Get(id)
		next := old.clone()
		if err := change(t, n, next); err != nil {
			return err
		}
		return t.setTraits(n, next)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// setTraits writes a node's traits and makes them visible.
func (t *tx) setTraits(n *Node, next *Traits) error {
	next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool { return f.over(t.moment) })
	sortFacts(next.Facts)
	op := store.Delete(traitsPath(n.ID))
	if !next.empty() {
		var err error
		if op, err = traitsOp(n.ID, next); err != nil {
			return err
		}
	}
	t.writes = append(t.writes, op)
	drop(&t.stale, n.ID)
	t.state.setTraits(n, next)
	t.nodes = append(t.nodes, n.ID)
	return nil
}

// setTraits replaces a node's traits in all indexes.
func (s *state) setTraits(n *Node, next *Traits) {
	s.dropTraits(n.ID)
	if next.empty() {
		return
	}
	put(&s.traits, n.ID, next.complete(n.Level))
	if !next.ends.IsZero() {
		put(&s.factEnds, timeKey(next.ends, idKey(n.ID)), n.ID)
	}
	if next.routes() && s.seen(n) {
		put(&s.routers, n.ID, n.ID)
	}
}

func (s *state) dropTraits(id proto.NodeID) {
	if old, ok := s.traits.Get(id); ok {
		drop(&s.traits, id)
		drop(&s.factEnds, timeKey(old.ends, idKey(id)))
		drop(&s.routers, id)
	}
}

// forgetFacts removes expired facts in memory. It costs no write: nothing depends on when they leave the disk, which Expire
// takes care of.
func (t *tx) forgetFacts() {
	for id := range over(t.factEnds, t.moment) {
		n, _ := t.state.nodes.Get(id)
		old, _ := t.traits.Get(id)
		next := old.clone()
		next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool { return f.over(t.moment) })
		t.state.setTraits(n, next)
		put(&t.stale, id, id)
		t.nodes = append(t.nodes, id)
	}
}

// expireFacts removes expired facts from disk.
func (t *tx) expireFacts() error {
	for id := range values(t.stale) {
		if t.full() {
			break
		}
		op := store.Delete(traitsPath(id))
		if known, ok := t.traits.Get(id); ok {
			var err error
			if op, err = traitsOp(id, known); err != nil {
				return err
			}
		}
		t.writes = append(t.writes, op)
		drop(&t.stale, id)
	}
	return nil
}
