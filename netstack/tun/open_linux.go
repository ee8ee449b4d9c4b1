package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// maxQueues is how many queues a device has at most: as many as there are processors to serve them, and no more than pay.
const maxQueues = 4

// Open makes the TUN device name with the given MTU. The name may end in %d, and the kernel then picks a number.
func Open(name string, mtu int) (Device, error) {
	d, err := openNative(name, mtu, min(maxQueues, runtime.GOMAXPROCS(0)))
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
