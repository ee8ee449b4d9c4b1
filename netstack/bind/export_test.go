package bind

import "golang.zx2c4.com/wireguard/conn"

// Wrap wraps fn as Open does with the inner Bind's functions.
func (b *Bind) Wrap(fn conn.ReceiveFunc) conn.ReceiveFunc { return b.receive(fn) }
