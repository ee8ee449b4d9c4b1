package machine

import (
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// term is which rules of the netmap hold at a time: monitoring rules have an end, and those that depend on ageing facts
// cease to hold some time after the last contact, until there is contact again.
//
//	conditional: ──contact──► holds ──lost──► holds for Outage.Posture ──► does not hold
//	                             ▲                                            │
//	                             └──────────────────contact───────────────────┘
type term struct {
	of          *proto.Netmap
	conditional bool        // something in it is conditional
	ends        []time.Time // of monitoring rules, sorted

	now    time.Time // the time for which the following was found
	lapsed bool      // what is conditional does not hold
	ended  int       // how many of ends have passed
	next   time.Time // when this changes; zero: never by itself
}

// expire re-evaluates what holds, and reports whether that has changed.
func (m *Machine) expire() (changed bool) {
	before := m.term
	m.term.find(m.netmap, m.now, m.contact)
	t := &m.term
	if t.lapsed != before.lapsed {
		if t.lapsed {
			m.warn("permissions that depend on the state of machines are suspended", "since", stamp(postureEnd(m.netmap, m.contact)))
		} else {
			m.log("permissions that depend on the state of machines apply again")
		}
	}
	return t.lapsed != before.lapsed || t.ended != before.ended
}

// find reads the whole netmap only if it is another one.
func (t *term) find(nm *proto.Netmap, now time.Time, c contact) {
	if nm != t.of {
		*t = term{of: nm}
		if nm != nil {
			t.read()
		}
	}
	t.now, t.lapsed, t.next = now, false, time.Time{}
	t.ended, _ = slices.BinarySearchFunc(t.ends, now, func(end, now time.Time) int {
		if end.After(now) {
			return 1
		}
		return -1
	})
	if t.ended < len(t.ends) {
		t.next = t.ends[t.ended]
	}
	if c.serves || !t.conditional {
		return
	}
	switch end := postureEnd(nm, c); {
	case !now.Before(end):
		t.lapsed = true
	case t.next.IsZero() || end.Before(t.next):
		t.next = end
	}
}

func (t *term) read() {
	t.conditional = slices.ContainsFunc(t.of.Sets, func(s proto.Set) bool { return s.Conditional })
	for i := range t.of.Rules {
		r := &t.of.Rules[i]
		t.conditional = t.conditional || r.Conditional
		if r.Action == proto.Monitor {
			t.ends = append(t.ends, r.Until)
		}
	}
	slices.SortFunc(t.ends, time.Time.Compare)
}

// postureEnd returns when what is conditional ceases to hold, if there is no contact before.
func postureEnd(nm *proto.Netmap, c contact) time.Time { return c.last.Add(nm.Outage.Posture) }

// hold returns the sets and rules that hold. A set that does not hold has no members as far as rules that allow are
// concerned; rules that deny go on denying its members.
func (t *term) hold(nm *proto.Netmap) ([]proto.Set, []proto.Rule) {
	if !t.lapsed && t.ended == 0 {
		return nm.Sets, nm.Rules
	}
	var void map[string]bool
	if t.lapsed {
		void = make(map[string]bool)
		for _, s := range nm.Sets {
			if s.Conditional {
				void[s.Name] = true
			}
		}
	}
	rules := make([]proto.Rule, 0, len(nm.Rules))
	for _, r := range nm.Rules {
		switch {
		case r.Action == proto.Monitor && !t.now.Before(r.Until), t.lapsed && r.Conditional && r.Action != proto.Deny:
			continue
		case r.Action != proto.Deny && slices.ContainsFunc(r.Peers.Sets, func(name string) bool { return void[name] }):
			r.Peers.Sets = slices.DeleteFunc(slices.Clone(r.Peers.Sets), func(name string) bool { return void[name] })
		}
		rules = append(rules, r)
	}
	return nm.Sets, rules
}

// termProblems reports what does not hold for want of contact, or soon will not.
func (m *Machine) termProblems(now time.Time, add func(string, ...any)) {
	if m.netmap == nil || m.contact.serves || m.self == nil || m.term.of != m.netmap || !m.term.conditional {
		return
	}
	end := postureEnd(m.netmap, m.contact)
	if left := end.Sub(now).Round(time.Second); left > 0 {
		if now.Sub(m.contact.last) >= time.Minute {
			add("without the coordinator, permissions that depend on the state of machines apply for %v more, until %s", left, stamp(end))
		}
		return
	}
	add("permissions that depend on the state of machines are suspended since %s: the coordinator was not heard for %v",
		stamp(end), m.netmap.Outage.Posture)
}
