package policy

import (
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Programs makes programs of policies, and remembers the last one. It tells the directory what that one makes of time
// (directory.Ages). Its methods may be called from any goroutine.
type Programs struct {
	outage proto.Outage
	log    *slog.Logger

	mu   sync.Mutex
	last *loaded
}

type loaded struct {
	of      *directory.Policy
	program *compile.Program
	parsed  *acl.Policy     // nil: none, or one that is not understood
	limits  []time.Duration // of ages, ascending
}

// NewPrograms begins with no policy. outage is what holds where a policy says nothing.
func NewPrograms(outage proto.Outage, log *slog.Logger) *Programs {
	return &Programs{outage: outage, log: log}
}

// Program is the program of a policy, nil for none. One that is not understood permits nothing.
func (p *Programs) Program(of *directory.Policy, mesh proto.Mesh) *compile.Program {
	return p.load(of, mesh).program
}

func (p *Programs) load(of *directory.Policy, mesh proto.Mesh) *loaded {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || p.last.of != of {
		l := &loaded{of: of}
		var err error
		if l.parsed, l.program, err = load(of, mesh); err != nil {
			p.log.Error("policy cannot be enforced", "err", err)
		}
		l.limits = ages(l.parsed)
		p.last = l
	}
	return p.last
}

// Grace implements directory.Ages.
func (p *Programs) Grace(s *directory.Snapshot) time.Duration {
	return p.Program(s.Policy(), s.Mesh()).Outage(p.outage).Grace
}

// Lifetime is how long the policy of a snapshot lets a node's certificate live; 0 where it says nothing of that. The shortest of
// what it says of a node's tags holds.
func (p *Programs) Lifetime(s *directory.Snapshot, tags []string) time.Duration {
	parsed := p.load(s.Policy(), s.Mesh()).parsed
	if parsed == nil {
		return 0
	}
	var least time.Duration
	for _, tag := range tags {
		if d := parsed.Node.ByTag[tag]; d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	if least == 0 {
		return parsed.Node.CertLifetime
	}
	return least
}

// Until implements directory.Ages: the next end of an enforcement window.
func (p *Programs) Until(s *directory.Snapshot) time.Time {
	parsed := p.load(s.Policy(), s.Mesh()).parsed
	if parsed == nil {
		return time.Time{}
	}
	var next time.Time
	for _, r := range parsed.Rules {
		if r.Until.After(s.Now()) && (next.IsZero() || r.Until.Before(next)) {
			next = r.Until
		}
	}
	return next
}

// Next implements directory.Ages: the next moment at which the login of the person behind a node passes an age that the policy
// asks for somewhere. Ages may be counted exactly or in whole seconds, and a limit may be in or out: all those moments are named,
// for one at which nothing changes costs little.
func (p *Programs) Next(s *directory.Snapshot, id proto.NodeID) time.Time {
	limits := p.load(s.Policy(), s.Mesh()).limits
	n, ok := s.Node(id)
	if !ok || n.User.AuthTime.IsZero() {
		return time.Time{}
	}
	return passing(limits, n.User.AuthTime, s.Now())
}

// passing is the first moment after now at which something that began passes one of some ages.
func passing(limits []time.Duration, began, now time.Time) time.Time {
	for _, limit := range limits {
		for _, past := range []time.Duration{0, 1, time.Second} {
			if at := began.Add(limit + past); at.After(now) {
				return at
			}
		}
	}
	return time.Time{}
}

// ages are those that a policy asks for, ascending.
func ages(p *acl.Policy) []time.Duration {
	if p == nil {
		return nil
	}
	out := []time.Duration{p.Session.MaxAge}
	for _, r := range p.Rules {
		if r.Auth != nil {
			out = append(out, r.Auth.Age)
		}
	}
	for _, posture := range p.Postures {
		for _, c := range posture.Conditions {
			if c.Fact != authAge {
				continue
			}
			for _, v := range c.Values {
				if s, err := strconv.ParseUint(v, 10, 32); err == nil {
					out = append(out, time.Duration(s)*time.Second)
				} else if d, err := time.ParseDuration(v); err == nil {
					out = append(out, d)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(d time.Duration) bool { return d <= 0 })
}

// authAge is the fact that counts how long ago a person logged in.
const authAge = "user:authAge"
