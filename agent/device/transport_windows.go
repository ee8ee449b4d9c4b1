package device

import (
	"fmt"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/windowstpm"
)

// SystemEventLog is empty: this package does not read the log on Windows.
const SystemEventLog = ""

// openSystem uses the TPM Base Services, which share the TPM among programs.
func openSystem() (func() (transport.TPMCloser, error), error) {
	t, err := windowstpm.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return windowstpm.Open, nil
}

func openDevice(path string) (func() (transport.TPMCloser, error), error) {
	return nil, fmt.Errorf("%w at %s: this system has no files for devices; want auto or unix:PATH", ErrNone, path)
}
