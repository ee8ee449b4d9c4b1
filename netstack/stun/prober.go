package stun

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// MaxServers is the number of servers asked per address family. Two suffice to tell whether the mapping depends on the server.
const MaxServers = 2

// Event is an input to a Prober.
type Event interface{ event() }

// The events.
type (
	// Begin starts probing, and discards any earlier run.
	Begin struct {
		Servers []netip.AddrPort
		Local   []netip.AddrPort // the socket's local addresses
		Full    bool             // find out everything the servers can tell, which takes some seconds
	}
	// Received is a STUN message received on the socket.
	Received struct {
		From netip.AddrPort
		Msg  []byte
	}
	// Tick reports that the time of the last Wake has come.
	Tick struct{}
)

func (Begin) event()    {}
func (Received) event() {}
func (Tick) event()     {}

// Effect is an action for the caller to perform.
type Effect interface{ effect() }

// The effects.
type (
	// Send sends a message from the socket.
	Send struct {
		To  netip.AddrPort
		Msg []byte
	}
	// Wake requests a Tick; it replaces all earlier ones.
	Wake struct{ At time.Time }
	// Found reports what is known so far: after the first answer of each server, and once everything is Done.
	Found struct{ Report Report }
)

func (Send) effect()  {}
func (Wake) effect()  {}
func (Found) effect() {}

// Prober asks servers how they see one socket. Each address family passes through these stages on its own:
//
//	address ─────────► all servers at once; two tell whether the mapping depends on the server
//	filterAddr ──┐     answer from another address and port: if it arrives, the filter lets in anyone
//	filterPort   │     answer from another port: if it arrives, the filter checks addresses only
//	mapPort      │     what the server's other port sees
//	mapAddr      │     what its other address sees, unless a second server told
//	hairpin ─────┘     to our own external address
//
// The stages after the first are for Full runs, and all but the last need a server with another address. Filtering is tested
// before anything is sent to the other address, since sending opens the filter for it.
type Prober struct {
	rnd      *rand.ChaCha8
	begun    Begin
	report   Report
	families [2]family // IPv4, IPv6
	open     []*question
	sent     []request
}

type family struct {
	*Family
	stage stage
	main  netip.AddrPort // a server with another address
	other netip.AddrPort // that other address
	seen  netip.AddrPort // our address as main sees it
}

type stage uint8

const (
	address stage = iota
	filterAddr
	filterPort
	mapPort
	mapAddr
	hairpin
	done
)

// question is a question that awaits an answer.
type question struct {
	family *family
	answer int // index in the family's Answers
	to     netip.AddrPort
	change Change
	gaps   []time.Duration // delays before each repetition, and before giving up
	next   time.Time
}

// request is one transmission of a question, with its own ID, so that an answer tells which transmission it belongs to.
type request struct {
	id TxID
	q  *question
	at time.Time
}

// Questions about filtering often get no answer, so those are given up sooner.
var (
	patience   = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1500 * time.Millisecond}
	impatience = []time.Duration{150 * time.Millisecond, 250 * time.Millisecond, 600 * time.Millisecond}
)

// NewProber returns a Prober that derives its transaction IDs from a secret seed.
func NewProber(seed [32]byte) *Prober { return &Prober{rnd: rand.NewChaCha8(seed)} }

// Step handles an event and returns the actions to perform.
func (p *Prober) Step(now time.Time, e Event) []Effect {
	var out []Effect
	switch e := e.(type) {
	case Begin:
		out = p.begin(now, e)
	case Received:
		out = p.received(now, e)
	case Tick:
		out = p.tick(now)
	}
	if _, ticked := e.(Tick); len(p.open) == 0 || (len(out) == 0 && !ticked) {
		return out
	}
	next := slices.MinFunc(p.open, func(a, b *question) int { return a.next.Compare(b.next) }).next
	return append(out, Wake{next})
}

func (p *Prober) begin(now time.Time, e Begin) (out []Effect) {
	p.begun, p.report, p.open, p.sent = e, Report{}, nil, nil
	p.families = [2]family{{Family: &p.report.V4}, {Family: &p.report.V6}}
	for i := range p.families {
		f := &p.families[i]
		for _, s := range e.Servers {
			known := slices.ContainsFunc(f.Answers, func(a Answer) bool { return a.Server == s })
			if s.Addr().Is4() != (i == 0) || known || len(f.Answers) == MaxServers {
				continue
			}
			f.Answers = append(f.Answers, Answer{Server: s})
			out = append(out, p.ask(now, &question{family: f, answer: len(f.Answers) - 1, to: s, gaps: patience}))
		}
		if len(f.Answers) == 0 {
			f.stage = done
		}
	}
	return append(out, p.finish()...)
}

// ask opens a question and sends its first request.
func (p *Prober) ask(now time.Time, q *question) Send {
	p.open = append(p.open, q)
	return p.send(now, q)
}

func (p *Prober) send(now time.Time, q *question) Send {
	r := request{q: q, at: now}
	_, _ = p.rnd.Read(r.id[:]) // never fails
	p.sent = append(p.sent, r)
	q.next, q.gaps = now.Add(q.gaps[0]), q.gaps[1:]
	return Send{q.to, AppendChangeRequest(nil, r.id, q.change)}
}

// tick repeats the questions that were not answered in time, or gives them up.
func (p *Prober) tick(now time.Time) (out []Effect) {
	for _, q := range slices.Clone(p.open) {
		switch {
		case q.next.After(now):
		case len(q.gaps) > 0:
			out = append(out, p.send(now, q))
		default:
			p.closeQuestion(q)
			out = append(out, p.unanswered(now, q)...)
		}
	}
	return out
}

func (p *Prober) closeQuestion(q *question) {
	p.open = slices.DeleteFunc(p.open, func(o *question) bool { return o == q })
	p.sent = slices.DeleteFunc(p.sent, func(r request) bool { return r.q == q })
}

// received handles a message that may be an answer.
func (p *Prober) received(now time.Time, e Received) []Effect {
	m, err := Parse(e.Msg)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(p.sent, func(r request) bool { return r.id == m.ID })
	if i < 0 {
		return nil
	}
	r := p.sent[i]
	q, f := r.q, r.q.family
	if !q.expects(m, e.From) {
		return nil
	}
	p.closeQuestion(q)
	switch {
	case f.stage == hairpin:
		f.Hairpin = Yes
		return p.enter(now, f, done)
	case m.Kind == Failure || (q.change != 0 && e.From == q.to): // it does not do what was asked
		return p.refused(now, f)
	case f.stage == address:
		f.Answers[q.answer].Mapped, f.Answers[q.answer].RTT = m.Mapped, now.Sub(r.at)
		if !f.main.IsValid() && f.useful(q.to, m.Other) {
			f.main, f.other, f.seen = q.to, m.Other, m.Mapped
		}
		return append(p.found(), p.addressed(now, f)...)
	}
	return p.answered(now, f, m.Mapped)
}

// expects reports whether m can be the answer: it comes from the expected endpoint and carries a plausible address.
func (q *question) expects(m Message, from netip.AddrPort) bool {
	if q.family.stage == hairpin {
		return m.Kind == Request
	}
	switch {
	case m.Kind == Failure:
		return from == q.to
	case m.Kind != Response:
		return false
	case q.change&ChangeAddr != 0 && from != q.to && from.Addr() == q.to.Addr(),
		q.change == ChangePort && from.Addr() != q.to.Addr(),
		q.change == 0 && from != q.to:
		return false
	}
	a := m.Mapped
	return a.IsValid() && a.Port() != 0 && a.Addr().Is4() == q.to.Addr().Is4() && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}

// useful reports whether a server's other address can tell more: it differs in both address and port, and no server that we ask
// has that address.
func (f *family) useful(server, other netip.AddrPort) bool {
	spoken := slices.ContainsFunc(f.Answers, func(a Answer) bool { return a.Server.Addr() == other.Addr() })
	return other.IsValid() && other.Addr().Is4() == server.Addr().Is4() && other.Port() != 0 &&
		other.Port() != server.Port() && other.Addr() != server.Addr() && !spoken
}
