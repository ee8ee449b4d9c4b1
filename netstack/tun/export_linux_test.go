package tun

// OpenQueues is Open with a given number of queues.
func OpenQueues(name string, mtu, queues int) (Device, error) { return openNative(name, mtu, queues) }
