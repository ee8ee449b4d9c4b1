//go:build !linux

package osnet

import "net"

// Dialer opens connections of the underlay.
func Dialer() *net.Dialer { return &net.Dialer{} }

// Listener opens underlay sockets.
func Listener() *net.ListenConfig { return &net.ListenConfig{} }

// ProbeListener opens underlay sockets.
func ProbeListener() *net.ListenConfig { return &net.ListenConfig{} }
