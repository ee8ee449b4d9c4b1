//go:build !freebsd

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wireguardDevice reads the state of a WireGuard interface, whether of the kernel or of a userspace program.
func wireguardDevice(name string) (*wgtypes.Device, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, &exitError{exitFalse, fmt.Errorf("read WireGuard interfaces: %w", err)}
	}
	defer func() { _ = c.Close() }()
	d, err := c.Device(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, &exitError{exitFalse, fmt.Errorf("there is no WireGuard interface %q on this machine", name)}
	case errors.Is(err, os.ErrPermission):
		return nil, &exitError{exitNoAccess, fmt.Errorf("reading WireGuard interface %q requires root", name)}
	case err != nil:
		return nil, &exitError{exitFalse, fmt.Errorf("read WireGuard interface %q: %w", name, err)}
	}
	return d, nil
}
