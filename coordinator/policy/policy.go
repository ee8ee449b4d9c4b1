// Package policy stages a policy: it finds everything that can be found wrong with it before it is put in force. It does no
// I/O; the directory stores what was applied.
//
//	source ──► acl.Check ──► compile ──► the policy's own tests, on the current nodes ──► directory.SetPolicy
//	              │                              │
//	              └── every error and warning ───┴──► refused with all of them
//
// Package acl/explain shows what it would change compared with the one in force.
package policy

import (
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// name is what messages call the policy: whoever applies it knows its file.
const name = "policy"

// ErrRefused means that a policy has errors or that its tests fail; the diagnostics say which.
var ErrRefused = errors.New("the policy is refused and nothing has changed")

// Staged is the result of staging a policy.
type Staged struct {
	Diagnostics acl.Diagnostics
	// Program is the compiled policy; nil if it is refused.
	Program *compile.Program
}

// Stage checks a policy that is about to be put in force against the nodes of a mesh.
func Stage(source string, now time.Time, mesh proto.Mesh, inventory compile.Inventory) (Staged, error) {
	parsed, found := acl.Check(name, []byte(source), now)
	if parsed == nil {
		return Staged{Diagnostics: found}, ErrRefused
	}
	program := compile.New(parsed, mesh)
	found = append(found, compile.Unresolved(program, inventory)...)
	failures := append(compile.RunTests(program, inventory), compile.RunSSHTests(program, inventory)...)
	for _, f := range failures {
		found = append(found, f.Diagnostic())
	}
	found.Sort()
	if len(failures) > 0 || found.HasErrors() {
		return Staged{Diagnostics: found}, ErrRefused
	}
	return Staged{Diagnostics: found, Program: program}, nil
}

// Load compiles the policy in force. Nil permits nothing; neither does a policy that does not compile, which is also an
// error.
func Load(p *directory.Policy, mesh proto.Mesh) (*compile.Program, error) {
	_, program, err := load(p, mesh)
	return program, err
}

func load(p *directory.Policy, mesh proto.Mesh) (*acl.Policy, *compile.Program, error) {
	if p == nil {
		return nil, compile.New(nil, mesh), nil
	}
	parsed, found := acl.Parse(name, []byte(p.Source))
	if parsed == nil {
		return nil, compile.New(nil, mesh), fmt.Errorf("policy %d, in force since %v, cannot be read by this version, so nothing is permitted; apply another one: %s",
			p.Number, p.Applied, found.Format(name))
	}
	return parsed, compile.New(parsed, mesh), nil
}
