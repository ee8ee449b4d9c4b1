package cert

import "errors"

// Why a certificate is refused. Errors of this package wrap one of them.
var (
	ErrMalformed   = errors.New("certificate: malformed")
	ErrExtension   = errors.New("certificate: its node extension is malformed")
	ErrRole        = errors.New("certificate: another role than the one that is wanted here")
	ErrMesh        = errors.New("certificate: of another mesh")
	ErrChain       = errors.New("certificate: no chain to a trusted root")
	ErrExpired     = errors.New("certificate: expired")
	ErrNotYetValid = errors.New("certificate: not yet valid (is the clock right?)")
	ErrPin         = errors.New("certificate: the root is not the one that was named")
)
