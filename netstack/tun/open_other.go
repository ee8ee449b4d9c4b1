//go:build !linux

package tun

import (
	"errors"
	"fmt"
	"runtime"
)

// Open makes the TUN device name with the given MTU; on this system it cannot yet.
func Open(name string, mtu int) (Device, error) {
	return nil, fmt.Errorf("make the network device %s with MTU %d on %s: %w", name, mtu, runtime.GOOS, errors.ErrUnsupported)
}
