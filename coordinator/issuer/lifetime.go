//go:build !shortlives

package issuer

import "time"

// MinNodeLifetime is as short as certificates of nodes may be: each renewal must reach all peers long before the next.
const MinNodeLifetime = 10 * time.Minute
