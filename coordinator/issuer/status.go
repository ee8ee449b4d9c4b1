package issuer

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// Status is how the keys are, for people and metrics.
type Status struct {
	RootEnds         time.Time
	RootHere         bool
	IntermediateEnds time.Time
	// Warnings say what somebody must do soon.
	Warnings []string
}

// Status looks at the keys now.
func (i *Issuer) Status() Status {
	now := i.config.Clock()
	current := i.authority().Certificate()
	_, err := os.Stat(i.files.path(rootKeyFile))
	s := Status{RootEnds: i.root.NotAfter, RootHere: !errors.Is(err, os.ErrNotExist), IntermediateEnds: current.NotAfter}
	if !s.RootHere && now.After(middle(current)) {
		s.Warnings = append(s.Warnings, fmt.Sprintf(
			"the intermediate certificate ends %s and no certificate is issued after that: put the root's key back as %s for a minute",
			current.NotAfter.Format(time.RFC3339), i.files.path(rootKeyFile)))
	}
	if now.After(i.root.NotAfter.Add(-rootWarning)) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the mesh root ends %s, and the mesh with it", i.root.NotAfter.Format(time.RFC3339)))
	}
	if i.early(now) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("this machine's clock is before %s, when the mesh was made: no node is served until it is right", i.root.NotBefore.Format(time.RFC3339)))
	}
	return s
}
