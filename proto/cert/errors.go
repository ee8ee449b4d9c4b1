package cert

import "errors"

// The reasons for refusing a certificate. Errors of this package wrap one of them.
var (
	ErrMalformed   = errors.New("certificate: malformed")
	ErrExtension   = errors.New("certificate: its node extension is malformed")
	ErrRole        = errors.New("certificate: another role than the one that is wanted here")
	ErrMesh        = errors.New("certificate: of another mesh")
	ErrChain       = errors.New("certificate: no chain to a trusted root")
	ErrExpired     = errors.New("certificate: expired")
	ErrNotYetValid = errors.New("certificate: not yet valid (is the clock right?)")
	ErrPin         = errors.New("certificate: the coordinator does not show the root that the join code names: if the mesh's root was " +
		"replaced since the code was made, ask for a new code; else the code is of another mesh, or somebody is in between")
)
