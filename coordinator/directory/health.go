package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Bounds on how long a posture fact may hold after the node was last heard. Values reported by nodes are clamped to them.
const (
	MinHealthTTL = time.Second
	MaxHealthTTL = 24 * time.Hour
)

// healthPrefix is the prefix of the names of facts about a node's health.
const healthPrefix = "posture:"

// Health is a node's report about its health in one message.
type Health struct {
	Facts []HealthFact
	// Whole means that facts not listed are no longer known.
	Whole bool
}

// HealthFact is a single fact in a Health report.
type HealthFact struct {
	Name, Value string // empty value: no longer known
	TTL         time.Duration
}

// health reports whether the fact is about the node's health, and thus expires some time after the node was last heard.
func (f Fact) health() bool { return f.TTL > 0 }

func (h *Health) check() error {
	if len(h.Facts) > MaxFacts {
		return fmt.Errorf("%d facts, at most %d: %w", len(h.Facts), MaxFacts, ErrInvalid)
	}
	for i := range h.Facts {
		f := &h.Facts[i]
		if err := acl.CheckFact(f.Name); err != nil {
			return fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if !strings.HasPrefix(f.Name, healthPrefix) || f.Value != "" && !proto.ValidText(f.Value, MaxFact) {
			return fmt.Errorf("fact %.80q: want posture:NAME and at most %d bytes of printable text: %w", f.Name, MaxFact, ErrInvalid)
		}
		f.TTL = min(max(f.TTL, MinHealthTTL), MaxHealthTTL)
	}
	return nil
}

// withHealth returns the traits after a health report, and reports whether anything changed for policies.
func (t *Traits) withHealth(h *Health, now time.Time) (next *Traits, differs bool) {
	next = t.clone()
	if h.Whole {
		next.Facts = slices.DeleteFunc(next.Facts, func(f Fact) bool {
			gone := f.health() && !slices.ContainsFunc(h.Facts, func(x HealthFact) bool { return x.Name == f.Name })
			differs = differs || gone
			return gone
		})
	}
	count := 0
	for _, f := range next.Facts {
		if f.health() {
			count++
		}
	}
	for _, x := range h.Facts {
		i := slices.IndexFunc(next.Facts, func(f Fact) bool { return f.Name == x.Name })
		switch {
		case x.Value == "" && i >= 0:
			next.Facts = slices.Delete(next.Facts, i, i+1)
			count--
			differs = true
		case x.Value == "":
		case i >= 0 && next.Facts[i].Value == x.Value:
			f := &next.Facts[i]
			differs = differs || f.TTL != x.TTL // the TTL is on disk
			f.TTL, f.Expires = x.TTL, time.Time{}
		case i >= 0:
			next.Facts[i] = Fact{Name: x.Name, Value: x.Value, Source: SourceNode, Set: now, TTL: x.TTL}
			differs = true
		case count < MaxFacts:
			next.Facts = append(next.Facts, Fact{Name: x.Name, Value: x.Value, Source: SourceNode, Set: now, TTL: x.TTL})
			count++
			differs = true
		}
	}
	return next, differs
}

// silent makes health facts expire their TTL after since, unless they expire earlier.
func (t *Traits) silent(since time.Time) (changed bool) {
	for i := range t.Facts {
		if f := &t.Facts[i]; f.health() && f.Expires.IsZero() {
			f.Expires = since.Add(f.TTL)
			changed = true
		}
	}
	return changed
}

// ReportHealth stores an attached node's health report. It holds while the node is attached, and for its TTLs afterwards.
func (d *Directory) ReportHealth(ctx context.Context, id proto.NodeID, h Health) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("node %s: %w", id, err)
	}
	return d.do(ctx, func(t *tx) error {
		n, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		old, _ := t.traits.Get(id)
		next, differs := old.withHealth(&h, t.now)
		if !differs {
			t.setTimes(n, next)
			return nil
		}
		return t.setTraits(n, next)
	})
}

// Fallen records that a node is no longer heard: its health facts expire their TTLs after heard. That costs no write. A node
// that has attached again is left alone.
func (d *Directory) Fallen(ctx context.Context, id proto.NodeID, heard time.Time) error {
	return d.do(ctx, func(t *tx) error {
		n, ok := t.state.nodes.Get(id)
		old, known := t.traits.Get(id)
		if live, _ := d.Live(id); !ok || !known || live.Connected {
			return nil
		}
		if next := old.clone(); next.silent(heard) {
			t.setTimes(n, next)
		}
		return nil
	})
}

// setTimes replaces a node's traits by the same facts with different expiries.
func (t *tx) setTimes(n *Node, next *Traits) {
	sortFacts(next.Facts)
	t.state.setTraits(n, next)
}
