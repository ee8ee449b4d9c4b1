package device

import (
	"fmt"
	"os"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// Where the kernel exposes a TPM; the device that it shares among programs comes first.
var systemDevices = []string{"/dev/tpmrm0", "/dev/tpm0"}

// SystemEventLog is where the kernel exposes the measured boot log.
const SystemEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

func openSystem() (func() (transport.TPMCloser, error), error) {
	for _, path := range systemDevices {
		if _, err := os.Stat(path); err == nil {
			return openDevice(path)
		}
	}
	return nil, ErrNone
}

func openDevice(path string) (func() (transport.TPMCloser, error), error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrNone, path, err)
	}
	return func() (transport.TPMCloser, error) { return linuxtpm.Open(path) }, nil
}
