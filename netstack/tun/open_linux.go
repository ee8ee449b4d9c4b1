package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// maxQueues bounds the number of queues of a device.
const maxQueues = 4

// queuesFor returns how many queues pay off. Under load, the reader of a queue occupies one processor, and the replies to its
// packets another; with a single queue the kernel need not look up which queue a packet belongs to.
func queuesFor(processors int) int { return min(max(1, processors/2), maxQueues) }

// Open creates the TUN device name with the given MTU. The name may end in %d, for which the kernel then picks a number.
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
