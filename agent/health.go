package agent

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// watchHealth begins to look after what can be known of this machine.
func (a *Agent) watchHealth() *posture.Watch {
	w, err := posture.Start(*a.cfg.Edges.Posture, a.cfg.Edges.Clock.Boot, func(ctx context.Context, r posture.Report) {
		// An error means that the watch is being closed, or that the agent ends.
		_ = a.post(ctx, func() { a.tellHealth(r.Facts, r.Complete) })
	})
	if err != nil {
		a.log.Warn("firewall changes are noticed with a delay of up to a minute", "err", err)
	}
	return w
}

// tellHealth has the coordinator know what has changed.
func (a *Agent) tellHealth(facts []posture.Fact, complete bool) {
	c := a.loop.client
	if c == nil {
		return // it is told everything when there is one
	}
	c.Posture(forCoordinator(facts), complete)
}

// healthNow is what is known of this machine, for the proof with which it enrols.
func (a *Agent) healthNow() *redoubtv1.Posture {
	facts, complete := a.health.Facts()
	return control.Posture(forCoordinator(facts), complete)
}

// forCoordinator are facts as the coordinator is told of them.
func forCoordinator(facts []posture.Fact) []control.Fact {
	list := make([]control.Fact, 0, len(facts))
	for _, f := range facts {
		list = append(list, control.Fact{Name: f.Name, Value: f.Value, TTL: f.TTL})
	}
	return list
}

// Posture says what is known of this machine, and which rules do not hold for it now.
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
	return r, a.call(ctx, func() {
		now := a.time.Now()
		at := func(boots time.Duration) int64 { return now.Add(boots - boot).Unix() }
		for _, f := range facts {
			r.Facts = append(r.Facts, &redoubtv1.LocalFact{
				Name: f.Name, Value: f.Value, Source: "reported", Since: at(f.Since), Checked: at(f.Checked),
				TtlSeconds: uint32(f.TTL / time.Second), Note: f.Note, Mend: posture.Advice(f.Name),
			})
		}
		v := a.loop.machine.View(now)
		r.Told, r.Problems = v.Connected, v.Problems
		if !v.Version.IsZero() {
			r.PolicyVersion = v.Version.String()
		}
		r.Withheld = withheld(a.loop.machine.Withheld(), facts)
	})
}

// withheld names rules once, however many parts of them do not hold.
func withheld(rules []proto.Withheld, facts []posture.Fact) (out []*redoubtv1.WithheldRule) {
	for _, w := range rules {
		if slices.ContainsFunc(out, func(o *redoubtv1.WithheldRule) bool {
			return o.GetPath() == w.Origin.Path && o.GetReason() == w.Reason
		}) {
			continue
		}
		o := &redoubtv1.WithheldRule{Path: w.Origin.Path, Line: int32(w.Origin.Line), Reason: w.Reason}
		for _, f := range facts {
			if mentions(w.Reason, f.Name) {
				o.Facts = append(o.Facts, f.Name)
			}
		}
		out = append(out, o)
	}
	return out
}

// mentions says whether a text names a fact, and not one whose name only begins like that.
func mentions(text, fact string) bool {
	for {
		_, after, found := strings.Cut(text, fact)
		if !found {
			return false
		}
		if end, _ := utf8.DecodeRuneInString(after); !unicode.IsLetter(end) && !unicode.IsDigit(end) && end != ':' && end != '_' && end != '-' {
			return true
		}
		text = after
	}
}
