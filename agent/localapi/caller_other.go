//go:build !linux

package localapi

import "net"

// callerAt knows nobody on this system yet, so that nobody may change anything.
func callerAt(net.Conn) Caller { return Caller{} }
