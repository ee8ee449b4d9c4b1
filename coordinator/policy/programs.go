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
	parsed  *acl.Policy // nil: none, or one that is not understood
	err     error       // why it is not
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

// Demands is what the policy of a snapshot asks of the machine of a node, which may be one to come (directory.Demands).
func (p *Programs) Demands(s *directory.Snapshot, n proto.Identity) (compile.Demand, error) {
	l := p.load(s.Policy(), s.Mesh())
	return l.program.Demands(s, n), l.err
}

// Until implements directory.Ages: the next end of an enforcement window.
func (p *Programs) Until(s *directory.Snapshot) time.Time {
	for _, at := range p.Program(s.Policy(), s.Mesh()).Until() {
		if at.After(s.Now()) {
			return at
		}
	}
	return time.Time{}
}

// Next implements directory.Ages: when the login of the person behind a node passes an age that a rule asks for.
func (p *Programs) Next(s *directory.Snapshot, id proto.NodeID) time.Time {
	if n, ok := s.Node(id); !ok || n.User.AuthTime.IsZero() {
		return time.Time{}
	}
	at, _ := p.Program(s.Policy(), s.Mesh()).NextChange(s, id)
	return at
}
