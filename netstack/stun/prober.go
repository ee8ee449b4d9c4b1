package stun

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// MaxServers is how many servers of each address family are asked. Two tell whether a NAT maps alike towards all.
const MaxServers = 2

// Event is what a Prober is told.
type Event interface{ event() }

// The events.
type (
	// Begin asks, from the start: an earlier run is forgotten.
	Begin struct {
		Servers []netip.AddrPort
		Local   []netip.AddrPort // the addresses of the socket
		Full    bool             // find out all that the servers can tell, which takes some seconds
	}
	// Received is a STUN message that came to the socket.
	Received struct {
		From netip.AddrPort
		Msg  []byte
	}
	// Tick is the time that a Wake asked for.
	Tick struct{}
)

func (Begin) event()    {}
func (Received) event() {}
func (Tick) event()     {}

// Effect is what is to be done.
type Effect interface{ effect() }

// The effects.
type (
	// Send sends a message by the socket.
	Send struct {
		To  netip.AddrPort
		Msg []byte
	}
	// Wake asks for a Tick; it stands in for all earlier ones.
	Wake struct{ At time.Time }
	// Found is what is known now: after the first answer of each server, and when all is Done.
	Found struct{ Report Report }
)

func (Send) effect()  {}
func (Wake) effect()  {}
func (Found) effect() {}

// Prober asks servers how they see one socket. Each address family goes through these stages by itself:
//
//	address ─────────► all servers at once; two tell whether the mapping depends on them
//	filterAddr ──┐     answer from another address and port: then the filter lets in anyone
//	filterPort   │     answer from another port: then it looks at addresses only
//	mapPort      │     what the server's other port sees
//	mapAddr      │     what its other address sees, where no second server told
//	hairpin ─────┘     to our own outside address
//
// The stages after the first are for Full runs, and all but the last for servers with another address. The filter is looked
// at before the other address is ever sent to, since that opens it.
type Prober struct {
	rnd      *rand.ChaCha8
	begun    Begin
	report   Report
	families [2]family // of IPv4 and IPv6
	open     []*question
	sent     []request
}

type family struct {
	*Family
	stage stage
	main  netip.AddrPort // a server with another address
	other netip.AddrPort // that
	seen  netip.AddrPort // how main sees us
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

// question is what waits for an answer.
type question struct {
	family *family
	answer int // its place in the family's Answers
	to     netip.AddrPort
	change Change
	gaps   []time.Duration // after which it is repeated, and at last given up
	next   time.Time
}

// request is a question sent once, under an id of its own: so it is known which one was answered.
type request struct {
	id TxID
	q  *question
	at time.Time
}

// What is asked about filters often has no answer: that is waited for less long.
var (
	patience   = []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1500 * time.Millisecond}
	impatience = []time.Duration{150 * time.Millisecond, 250 * time.Millisecond, 600 * time.Millisecond}
)

// NewProber is a Prober whose transaction ids follow from a secret seed.
func NewProber(seed [32]byte) *Prober { return &Prober{rnd: rand.NewChaCha8(seed)} }

// Step takes an event and says what to do.
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

// ask opens a question.
func (p *Prober) ask(now time.Time, q *question) Send {
	p.open = append(p.open, q)
	return p.send(now, q)
}

func (p *Prober) send(now time.Time, q *question) Send {
	r := request{q: q, at: now}
	_, _ = p.rnd.Read(r.id[:]) // has no errors
	p.sent = append(p.sent, r)
	q.next, q.gaps = now.Add(q.gaps[0]), q.gaps[1:]
	return Send{q.to, AppendChangeRequest(nil, r.id, q.change)}
}

// tick repeats what was not answered in time, or gives it up.
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

// received takes what may be an answer.
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

// expects says whether a message can be the answer: from where it was asked for, and with an address that can be ours.
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

// useful says whether a server's other address can tell more: it is another one, with another port, which no server has
// that we speak to.
func (f *family) useful(server, other netip.AddrPort) bool {
	spoken := slices.ContainsFunc(f.Answers, func(a Answer) bool { return a.Server.Addr() == other.Addr() })
	return other.IsValid() && other.Addr().Is4() == server.Addr().Is4() && other.Port() != 0 &&
		other.Port() != server.Port() && other.Addr() != server.Addr() && !spoken
}
