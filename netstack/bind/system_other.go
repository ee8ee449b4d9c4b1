//go:build !linux

package bind

import "golang.zx2c4.com/wireguard/conn"

// System is a conn.Bind over the system's UDP sockets, a packet a call.
func System() conn.Bind { return conn.NewDefaultBind() }
