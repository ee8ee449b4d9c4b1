package control

import (
	"cmp"
	"slices"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// Fact is something about this machine's health, for the coordinator to go by.
type Fact struct {
	Name, Value string        // no value: it is not known any more
	TTL         time.Duration // how long it holds after this node was heard last
}

// health is what is known of this machine, and what of that the coordinator was not told.
type health struct {
	facts    map[string]Fact
	complete bool // nothing is known besides
	listens  bool // the coordinator takes facts

	news  map[string]struct{}
	whole bool // the coordinator has to forget what facts does not hold
}

// begin is for a new stream.
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

// Posture is all that is known of a machine, for the proof with which it enrols; nil where nothing is.
func Posture(facts []Fact, complete bool) *redoubtv1.Posture {
	h := health{listens: true} // whoever does not listen passes it over
	h.add(facts, complete)
	return h.now()
}

// now is all that is known, for a coordinator that takes it; nil where nothing is.
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

// take is what has to be told; nil for nothing. A fact that is gone is remembered no longer than that takes.
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
