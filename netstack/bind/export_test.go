package bind

import "golang.zx2c4.com/wireguard/conn"

// Wrap is what Open does to the inner Bind's functions.
func (b *Bind) Wrap(fn conn.ReceiveFunc) conn.ReceiveFunc { return b.receive(fn) }
