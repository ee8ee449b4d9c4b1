package policy

import (
	"log/slog"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Programs compiles policies and caches the last one. It tells the directory how the passage of time affects that one
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
	parsed  *acl.Policy // nil if there is none or it does not parse
	err     error       // why it does not parse
}

// NewPrograms starts without a policy. outage applies where a policy says nothing.
func NewPrograms(outage proto.Outage, log *slog.Logger) *Programs {
	return &Programs{outage: outage, log: log}
}

// Program returns the program of a policy, nil if there is none. A policy that does not parse permits nothing.
func (p *Programs) Program(of *directory.Policy, mesh proto.Mesh) *compile.Program {
	return p.load(of, mesh).program
}

func (p *Programs) load(of *directory.Policy, mesh proto.Mesh) *loaded {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil || p.last.of != of {
		l := &loaded{of: of}
		if l.parsed, l.program, l.err = load(of, mesh); l.err != nil {
			p.log.Error("policy cannot be enforced", "err", l.err)
		}
		p.last = l
	}
	return p.last
}

// Grace implements directory.Ages.
func (p *Programs) Grace(s *directory.Snapshot) time.Duration {
	return p.Program(s.Policy(), s.Mesh()).Outage(p.outage).Grace
}

// Lifetime returns how long the policy of a snapshot lets a node's certificate live; 0 if it does not say. The shortest
// lifetime among the node's tags applies.
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

// Demands returns what the policy of a snapshot demands of a node's machine; the node may be a future one
// (directory.Demands).
func (p *Programs) Demands(s *directory.Snapshot, n proto.Identity) (compile.Demand, error) {
	l := p.load(s.Policy(), s.Mesh())
	return l.program.Demands(s, n), l.err
}

// Until implements directory.Ages: it returns the next end of an enforcement window.
func (p *Programs) Until(s *directory.Snapshot) time.Time {
	for _, at := range p.Program(s.Policy(), s.Mesh()).Until() {
		if at.After(s.Now()) {
			return at
		}
	}
	return time.Time{}
}

// Next implements directory.Ages: it returns when the login of the person behind a node passes an age that a rule requires.
func (p *Programs) Next(s *directory.Snapshot, id proto.NodeID) time.Time {
	if n, ok := s.Node(id); !ok || n.User.AuthTime.IsZero() {
		return time.Time{}
	}
	at, _ := p.Program(s.Policy(), s.Mesh()).NextChange(s, id)
	return at
}
