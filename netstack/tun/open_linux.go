package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// Open makes the TUN device name with the given MTU. The name may end in %d, and the kernel then picks a number.
func Open(name string, mtu int) (Device, error) {
	d, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return d, nil
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("make the network device %s: %w; run the agent as root, or give it CAP_NET_ADMIN", name, err)
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("make the network device %s: %w; another program holds it, stop that or choose another name", name, err)
	}
	return nil, fmt.Errorf("make the network device %s: %w", name, err)
}
