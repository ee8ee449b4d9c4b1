//go:build !shortlives

package issuer

import "time"

// MinNodeLifetime is the minimum lifetime of node certificates: each renewal must reach all peers long before the next.
const MinNodeLifetime = 10 * time.Minute
