package stun

import (
	"net/netip"
	"slices"
	"time"
)

// addressed evaluates the answers of the first stage once no request is outstanding.
func (p *Prober) addressed(now time.Time, f *family) []Effect {
	if slices.ContainsFunc(p.open, func(q *question) bool { return q.family == f }) {
		return nil
	}
	answers := 0
	for _, a := range f.Answers {
		if a.Mapped.IsValid() {
			answers++
		}
	}
	mapped := f.Mapped()
	switch {
	case answers == 0:
		return p.enter(now, f, done)
	case slices.Contains(p.begun.Local, mapped[0]):
		f.Mapping = Untranslated
	case len(mapped) > 1:
		f.Mapping = Dependent
	case answers > 1:
		f.Mapping = EndpointIndependent
	}
	switch {
	case !p.begun.Full:
		return p.enter(now, f, done)
	case f.main.IsValid():
		return p.enter(now, f, filterAddr)
	}
	return p.enter(now, f, hairpin)
}

// answered continues after an answer in any stage but the first.
func (p *Prober) answered(now time.Time, f *family, mapped netip.AddrPort) []Effect {
	switch f.stage {
	case filterAddr:
		f.Filtering = EndpointIndependent
		return p.enter(now, f, mapPort)
	case filterPort:
		f.Filtering = AddressDependent
		return p.enter(now, f, mapPort)
	case mapPort:
		switch {
		case mapped != f.seen:
			f.Mapping = AddressAndPortDependent
		case f.Mapping == Dependent:
			f.Mapping = AddressDependent
		default:
			return p.enter(now, f, mapAddr)
		}
	case mapAddr:
		f.Mapping = AddressDependent
		if mapped == f.seen {
			f.Mapping = EndpointIndependent
		}
	}
	return p.enter(now, f, hairpin)
}

// unanswered continues after a question that was given up.
func (p *Prober) unanswered(now time.Time, q *question) []Effect {
	f := q.family
	switch f.stage {
	case address:
		return p.addressed(now, f)
	case filterAddr:
		return p.enter(now, f, filterPort)
	case filterPort:
		f.Filtering = AddressAndPortDependent
		return p.enter(now, f, mapPort)
	case hairpin:
		f.Hairpin = No
		return p.enter(now, f, done)
	}
	return p.enter(now, f, hairpin)
}

// refused continues after a server that does not do what it was asked to.
func (p *Prober) refused(now time.Time, f *family) []Effect {
	switch f.stage {
	case address:
		return p.addressed(now, f)
	case filterAddr, filterPort:
		return p.enter(now, f, mapPort)
	}
	return p.enter(now, f, hairpin)
}

// enter enters stage s, or the next stage if s has nothing to find out.
func (p *Prober) enter(now time.Time, f *family, s stage) []Effect {
	if s == mapPort && (f.Mapping == Untranslated || f.Mapping == EndpointIndependent) {
		s = hairpin
	}
	if s == hairpin && f.Mapping == Untranslated {
		s = done
	}
	f.stage = s
	q := &question{family: f, to: f.main, gaps: impatience}
	switch s {
	case filterAddr:
		q.change = ChangeAddr | ChangePort
	case filterPort:
		q.change = ChangePort
	case mapPort:
		q.to = netip.AddrPortFrom(f.main.Addr(), f.other.Port())
	case mapAddr:
		q.to = netip.AddrPortFrom(f.other.Addr(), f.main.Port())
	case hairpin:
		q.to = f.Mapped()[0]
	default:
		return p.finish()
	}
	return []Effect{p.ask(now, q)}
}

// finish reports the result once both families are done.
func (p *Prober) finish() []Effect {
	for i := range p.families {
		if p.families[i].stage != done {
			return nil
		}
	}
	p.report.Done = true
	return p.found()
}

func (p *Prober) found() []Effect { return []Effect{Found{p.report.clone()}} }
