package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"
)

// Status describes the state of the keys, for people and metrics.
type Status struct {
	// Roots are the trusted roots, newest first.
	Roots            []*x509.Certificate
	RootHere         bool // whether the newest root's key is present
	Intermediate     *x509.Certificate
	IntermediateRoot *x509.Certificate // that signed it
	Requested        bool              // the next intermediate was requested, and no answer has been installed
	// Warnings describe what needs to be done soon.
	Warnings []string
}

// Status returns the current state of the keys.
func (i *Issuer) Status() Status {
	now := i.config.Clock()
	i.mu.Lock()
	t, current := i.roots, i.current.Certificate()
	i.mu.Unlock()
	_, err := os.Stat(i.files.path(rootKeyFile))
	_, asked := os.Stat(i.files.path(requestedFile))
	s := Status{
		Roots: t.roots(), RootHere: !errors.Is(err, os.ErrNotExist), Intermediate: current, IntermediateRoot: t.under(current), Requested: asked == nil,
	}
	if !s.RootHere && now.After(middle(current)) {
		s.Warnings = append(s.Warnings, fmt.Sprintf(
			"the intermediate certificate ends %s and no certificate is issued after that, and the root's key is not here: %s",
			current.NotAfter.Format(time.RFC3339), howToSign))
	}
	if now.After(t.newest.NotAfter.Add(-rootWarning)) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the mesh root ends %s, and the mesh with it: run `redoubt-coordinator root rotate`",
			t.newest.NotAfter.Format(time.RFC3339)))
	}
	if i.early(now) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("this machine's clock is before %s, when the mesh was created: no node is served until the clock is right", t.newest.NotBefore.Format(time.RFC3339)))
	}
	return s
}
