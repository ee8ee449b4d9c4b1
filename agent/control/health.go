package control

import (
	"cmp"
	"slices"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// Fact is something about this machine's health, for the coordinator's policy.
type Fact struct {
	Name, Value string        // empty: no longer known
	TTL         time.Duration // how long it holds after this node was last heard
}

// health is what is known of this machine, and which part of it the coordinator has not been told.
type health struct {
	facts    map[string]Fact
	complete bool // nothing else is known
	listens  bool // the coordinator accepts facts

	news  map[string]struct{}
	whole bool // the coordinator must forget everything that is not in facts
}

// begin prepares for a new stream.
func (h *health) begin(listens bool) {
	h.listens = listens
	h.news = make(map[string]struct{}, len(h.facts))
	for name := range h.facts {
		h.news[name] = struct{}{}
	}
	h.whole = h.complete
}

func (h *health) add(facts []Fact, complete bool) {
	if h.facts == nil {
		h.facts, h.news = map[string]Fact{}, map[string]struct{}{}
	}
	for _, f := range facts {
		if old, known := h.facts[f.Name]; known && old == f || !known && (f.Value == "" || len(h.facts) >= wire.MaxFacts) {
			continue
		}
		h.facts[f.Name], h.news[f.Name] = f, struct{}{}
	}
	h.whole = h.whole || complete && !h.complete
	h.complete = h.complete || complete
}

// Posture returns everything known of a machine, for the proof with which it enrols; nil if nothing is.
func Posture(facts []Fact, complete bool) *redoubtv1.Posture {
	h := health{listens: true} // a coordinator that does not listen ignores it
	h.add(facts, complete)
	return h.now()
}

// now returns everything known, if the coordinator accepts it; nil if nothing is.
func (h *health) now() *redoubtv1.Posture {
	if !h.listens || len(h.facts) == 0 {
		return nil
	}
	p := &redoubtv1.Posture{Whole: h.complete}
	for name, f := range h.facts {
		p.Facts = append(p.Facts, f.message(name))
	}
	sortFacts(p)
	return p
}

func (f Fact) message(name string) *redoubtv1.PostureFact {
	return &redoubtv1.PostureFact{Name: name, Value: f.Value, TtlSeconds: uint32(f.TTL / time.Second)}
}

func sortFacts(p *redoubtv1.Posture) {
	slices.SortFunc(p.Facts, func(a, b *redoubtv1.PostureFact) int { return cmp.Compare(a.GetName(), b.GetName()) })
}

// take returns what has yet to be reported; nil for nothing. It then forgets facts that are gone.
func (h *health) take() *redoubtv1.Posture {
	if !h.listens || len(h.news) == 0 && !h.whole {
		return nil
	}
	p := &redoubtv1.Posture{Whole: h.whole}
	for name, f := range h.facts {
		if _, isNew := h.news[name]; !isNew && !h.whole {
			continue
		}
		p.Facts = append(p.Facts, f.message(name))
		if f.Value == "" {
			delete(h.facts, name)
		}
	}
	sortFacts(p)
	clear(h.news)
	h.whole = false
	return p
}
