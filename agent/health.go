package agent

import (
	"context"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/fact"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// watchHealth starts watching the facts about this machine's health.
func (a *Agent) watchHealth() *posture.Watch {
	w, err := posture.Start(*a.cfg.Edges.Posture, a.cfg.Edges.Clock.Boot, func(ctx context.Context, r posture.Report) {
		// An error means that the watch is being closed or the agent is ending.
		_ = a.post(ctx, func() { a.tellHealth(r.Facts, r.Complete) })
	})
	if err != nil {
		a.log.Warn("firewall changes are noticed with a delay of up to a minute", "err", err)
	}
	return w
}

// tellHealth sends changed facts to the coordinator.
func (a *Agent) tellHealth(facts []posture.Fact, complete bool) {
	c := a.loop.client
	if c == nil {
		return // a new client is given everything
	}
	c.Posture(forCoordinator(facts), complete)
}

// healthNow returns what is known of this machine, for the proof with which it enrols.
func (a *Agent) healthNow() *redoubtv1.Posture {
	facts, complete := a.health.Facts()
	return control.Posture(forCoordinator(facts), complete)
}

// forCoordinator converts facts to the form that the coordinator gets.
func forCoordinator(facts []posture.Fact) []control.Fact {
	list := make([]control.Fact, 0, len(facts))
	for _, f := range facts {
		list = append(list, control.Fact{Name: f.Name, Value: f.Value, TTL: f.TTL})
	}
	return list
}

// Posture returns what is known of this machine, and which rules do not hold for it now.
func (a *Agent) Posture(ctx context.Context, refresh bool) (*redoubtv1.PostureResponse, error) {
	select {
	case <-a.running:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if refresh {
		if err := a.health.Refresh(ctx); err != nil {
			return nil, err
		}
	}
	facts, _ := a.health.Facts()
	boot := a.cfg.Edges.Clock.Boot()
	r := &redoubtv1.PostureResponse{}
	return r, a.inspect(ctx, func() {
		now := a.time.Now()
		v := a.loop.machine.View(now)
		if n := v.Node; n != nil && now.Before(n.NotAfter) {
			r.Facts = append(r.Facts, proved(n))
		}
		at := func(boots time.Duration) int64 { return now.Add(boots - boot).Unix() }
		for _, f := range facts {
			r.Facts = append(r.Facts, &redoubtv1.LocalFact{
				Name: f.Name, Value: f.Value, Source: "reported", Since: at(f.Since), Checked: at(f.Checked),
				TtlSeconds: uint32(f.TTL / time.Second), Note: f.Note, Mend: fact.Advice(f.Name),
			})
		}
		r.Told, r.Problems = v.Connected, v.Problems
		if !v.Version.IsZero() {
			r.PolicyVersion = v.Version.String()
		}
		r.Withheld = wire.FromUnmet(a.loop.machine.Withheld())
	})
}

// proved returns the attestation level, which the machine has proved to the coordinator and its certificate states.
func proved(n *cert.Node) *redoubtv1.LocalFact {
	return &redoubtv1.LocalFact{
		Name: fact.Attestation, Value: n.Level.String(), Source: "attested", Since: n.NotBefore.Unix(), Checked: n.NotBefore.Unix(),
		Note: "by the certificate", Mend: fact.Advice(fact.Attestation),
	}
}
