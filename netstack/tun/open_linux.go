package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// maxQueues is how many queues a device has at most.
const maxQueues = 4

// queuesFor is how many queues pay. What reads one takes a processor when there is much to do, and what its packets are
// answered with takes another; with a single queue the kernel need not look which one a packet belongs to.
func queuesFor(processors int) int { return min(max(1, processors/2), maxQueues) }

// Open makes the TUN device name with the given MTU. The name may end in %d, and the kernel then picks a number.
func Open(name string, mtu int) (Device, error) {
	d, err := openNative(name, mtu, queuesFor(runtime.GOMAXPROCS(0)))
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
