//go:build !linux

package wg

import (
	"errors"
	"fmt"
	"io"
	"runtime"
)

// ServeUAPI serves an engine's state where wg looks for it; it is not yet supported on this system.
func ServeUAPI(ifname string, _ Engine) (io.Closer, error) {
	return nil, fmt.Errorf("serve the state of interface %s on %s: %w", ifname, runtime.GOOS, errors.ErrUnsupported)
}
