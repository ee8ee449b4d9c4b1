//go:build !linux

package bind

import "golang.zx2c4.com/wireguard/conn"

// System is a conn.Bind over the system's UDP sockets, one for each address family, a packet a call.
func System(int) conn.Bind { return standard{conn.NewDefaultBind()} }

type standard struct{ conn.Bind }

// Sibling implements Siblings.
func (standard) Sibling() conn.Bind { return conn.NewDefaultBind() }
