//go:build !linux

package wg

import (
	"errors"
	"fmt"
	"io"
	"runtime"
)

// ServeUAPI serves an engine's state where wg looks for it; on this system it cannot yet.
func ServeUAPI(ifname string, _ Engine) (io.Closer, error) {
	return nil, fmt.Errorf("serve the state of interface %s on %s: %w", ifname, runtime.GOOS, errors.ErrUnsupported)
}
