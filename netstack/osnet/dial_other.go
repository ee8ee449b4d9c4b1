//go:build !linux

package osnet

import "net"

// Dialer makes connections of the underlay.
func Dialer() *net.Dialer { return &net.Dialer{} }

// Listener opens sockets of the underlay.
func Listener() *net.ListenConfig { return &net.ListenConfig{} }

// ProbeListener opens sockets of the underlay.
func ProbeListener() *net.ListenConfig { return &net.ListenConfig{} }
