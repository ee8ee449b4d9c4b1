//go:build !linux

package bind

import "golang.zx2c4.com/wireguard/conn"

// System returns a conn.Bind over the system's UDP sockets, one per address family, with one packet per call.
func System(int) conn.Bind { return standard{conn.NewDefaultBind()} }

type standard struct{ conn.Bind }

// Sibling implements Siblings.
func (standard) Sibling() conn.Bind { return conn.NewDefaultBind() }
