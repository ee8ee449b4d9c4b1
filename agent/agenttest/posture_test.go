package agenttest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/fact"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// firewalled is a policy under which ann reaches the database while her machine has a firewall.
const firewalled = `{
  "tagOwners": {"tag:db": []},
  "postures": {"posture:walled": ["posture:firewall == 'true'"]},
  "grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22"], "srcPosture": ["posture:walled"]}],
}`

// wall is a machine's firewall: it is checked every minute, and announces changes unless it is mute.
type wall struct {
	mu     sync.Mutex
	on     string
	mute   bool
	events chan posture.Trigger
}

func (w *wall) set(on string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = on
	if w.events != nil && !w.mute {
		w.events <- posture.Firewall
	}
}

func (w *wall) source() *posture.Source {
	return &posture.Source{
		Collectors: []posture.Collector{{
			Plan: posture.Plan{Every: time.Minute, On: posture.Firewall},
			Read: func(context.Context) []posture.Reading {
				w.mu.Lock()
				defer w.mu.Unlock()
				return []posture.Reading{{Name: fact.FirewallOn, Value: w.on, Note: "of a secret make"}}
			},
		}},
		Changes: func(ctx context.Context) (<-chan posture.Trigger, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			events := make(chan posture.Trigger, 8)
			w.events = events
			context.AfterFunc(ctx, func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.events = nil
				close(events)
			})
			return events, nil
		},
	}
}

// wallPair is ann's machine, which has a wall, and a database that she is connected to.
type wallPair struct {
	*mesh
	wall      *wall
	ann, db   *node
	near, far *sim.TCPConn
}

// MachineBehind adds a machine that has a wall.
func (m *mesh) MachineBehind(w *wall, name string) *node {
	m.Helper()
	n := newNode(m, name, len(m.nodes)+1)
	n.configure = func(c *agent.Config) { c.Edges.Posture = w.source() }
	m.nodes = append(m.nodes, n)
	n.start()
	return n
}

func (m *mesh) Walled() *wallPair {
	m.Helper()
	p := &wallPair{mesh: m, wall: &wall{on: "true"}, db: m.Join("db", tags("tag:db"))}
	p.db.Listen(22)
	m.Policy(firewalled)
	p.ann = m.MachineBehind(p.wall, "ann")
	p.ann.Up(m.Code(user("ann@example.com")))
	p.open()
	return p
}

// open waits until ann is let in.
func (p *wallPair) open() {
	p.Helper()
	p.Await(10*time.Second, "ann reaches the database", func() (ok bool) {
		var err error
		p.near, err = p.ann.Connect(p.db.V4(), 22)
		return err == nil
	})
	if err := p.ann.Talk(p.near); err != nil {
		p.Fatal(err)
	}
	all := p.db.programs().Accepted()
	p.far = all[len(all)-1]
}

// shut waits until both ends have been cut, which must happen within a time, and returns how long that took.
func (p *wallPair) shut(within time.Duration) time.Duration {
	p.Helper()
	began := time.Now()
	p.Await(within, "the connection is cut at both ends", func() bool {
		return errors.Is(p.near.Err(), sim.ErrReset) && errors.Is(p.far.Err(), sim.ErrReset)
	})
	return time.Since(began)
}

func (p *wallPair) live() {
	p.Helper()
	if err := p.ann.Talk(p.near); err != nil {
		p.Fatal(err)
	}
}

// TestFactOpensAndCloses checks that a grant applies while the machine has what it requires, and that people are told what is
// missing.
func TestFactOpensAndCloses(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Walled()
		time.Sleep(time.Second)
		p.wall.set("false")
		if took := p.shut(time.Second); took > 500*time.Millisecond {
			m.Errorf("it took %v", took)
		}
		r, err := p.ann.agent.Posture(m.Context(), false)
		if err != nil || len(r.GetFacts()) != 2 || len(r.GetWithheld()) != 1 || !r.GetTold() {
			m.Fatalf("%v, %v", r, err)
		}
		if a := r.GetFacts()[0]; a.GetName() != fact.Attestation || a.GetValue() != "token" || a.GetSource() != "attested" {
			m.Errorf("%v", a)
		}
		f, w := r.GetFacts()[1], r.GetWithheld()[0]
		if f.GetName() != fact.FirewallOn || f.GetValue() != "false" || f.GetSource() != "reported" || f.GetMend() == "" || f.GetTtlSeconds() != 180 ||
			w.GetPath() != "grants[0]" || len(w.GetFacts()) != 1 || w.GetFacts()[0] != fact.FirewallOn {
			m.Errorf("%v, %v", f, w)
		}
		if told := m.Unmet("ann"); len(told) != 1 || told[0].GetPath() != w.GetPath() || told[0].GetReason() != w.GetReason() ||
			told[0].GetLine() != w.GetLine() || !slices.Equal(told[0].GetFacts(), w.GetFacts()) {
			m.Errorf("administrators are told %v, and the machine %v", told, w)
		}
		p.wall.set("true")
		p.open()
		if told := m.Unmet("ann"); len(told) != 0 {
			m.Errorf("mended, and administrators are told %v", told)
		}

		// A change that nobody announces is found within a minute, or at once on request.
		p.wall.mute = true
		p.wall.set("false")
		p.shut(time.Minute + time.Second)
		p.wall.set("true")
		if _, err := p.ann.agent.Posture(m.Context(), true); err != nil {
			m.Fatal(err)
		}
		p.open()
		if r, err := p.ann.agent.Posture(m.Context(), false); err != nil || len(r.GetWithheld()) != 0 {
			m.Errorf("%v, %v", r, err)
		}

		// Peers learn the verdict, and nothing else that the machine reports about itself.
		p.db.stop()
		nm := p.db.stored()
		for _, s := range nm.Sets {
			if strings.Contains(s.Name, "secret") || strings.Contains(s.Name, "posture:firewall") {
				m.Errorf("the database was told of %q", s.Name)
			}
		}
		if len(nm.Withheld) > 0 {
			m.Errorf("the database was told why: %+v", nm.Withheld)
		}
	})
}

// Unmet returns the rules that do not apply to a node, as the coordinator shows them to administrators.
func (m *mesh) Unmet(name string) []*redoubtv1.WithheldRule {
	m.Helper()
	a, err := m.center.admin().GetNode(m.Context(), &redoubtv1.GetNodeRequest{Node: name})
	if err != nil {
		m.Fatal(err)
	}
	return a.GetNode().GetUnmet()
}

// TestFactsFromTheFirstMoment checks that a machine's facts are known when it becomes a node, before it has sent anything as one.
func TestFactsFromTheFirstMoment(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		n, code := m.MachineBehind(&wall{on: "true"}, "ann"), m.Code(user("ann@example.com"))
		up := make(chan error, 1)
		go func() {
			_, err := n.TryUp(code, time.Minute)
			up <- err
		}()
		var known *redoubtv1.Node
		for ; known == nil; known = m.Nodes()["ann"] {
			time.Sleep(latency / 10)
		}
		if known.GetConnected() || !slices.ContainsFunc(known.GetFacts(), func(f *redoubtv1.Fact) bool {
			return f.GetName() == fact.FirewallOn && f.GetValue() == "true" && f.GetSource() == "reported"
		}) {
			m.Errorf("connected %t, facts %v", known.GetConnected(), known.GetFacts())
		}
		if err := <-up; err != nil {
			m.Fatal(err)
		}
	})
}

// TestSilenceCloses checks that the facts of a machine that is no longer heard expire after some time, and that restarts of
// either side which end before that change nothing.
func TestSilenceCloses(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Walled()
		m.center.restart()
		for range 60 {
			p.live()
			time.Sleep(time.Second)
		}
		p.ann.restart()
		p.open()
		for range 4 * 60 {
			p.live()
			time.Sleep(time.Second)
		}

		cut := time.Now()
		m.net.Cut(p.ann.host, m.center.host)
		time.Sleep(150 * time.Second)
		p.live()
		m.Await(2*time.Minute, "the database knows nothing of ann's firewall", func() bool { return errors.Is(p.far.Err(), sim.ErrReset) })
		if took := time.Since(cut); took < 3*time.Minute-30*time.Second || took > 3*time.Minute+5*time.Second {
			m.Errorf("it was cut %v after the silence began", took)
		}
		if err := p.ann.Visit(p.db.V4(), 22); err == nil {
			m.Error("the database lets somebody in of whom it knows nothing")
		}
		m.net.Heal(p.ann.host, m.center.host)
		m.Await(3*time.Minute, "ann is back", func() bool { return p.ann.Status().GetCoordinator().GetConnected() })
		p.open()
	})
}
