//go:build !linux

package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.zx2c4.com/wireguard/tun"
)

// anyName lets macOS choose the number.
const anyName = "utun"

// Open creates a TUN device with the given MTU, as the WireGuard module implements it: it moves packets one at a time. MacOS
// names such devices itself: utun and a number, which can be requested.
func Open(name string, mtu int) (Device, error) {
	if runtime.GOOS == "darwin" && !strings.HasPrefix(name, anyName) {
		name = anyName
	}
	d, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return d, nil
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("make the network device %s: %w; run the agent as administrator", name, err)
	}
	return nil, fmt.Errorf("make the network device %s: %w", name, err)
}
