//go:build !linux

package osnet

import "context"

// Filters fails with ErrUnsupported.
func Filters() ([]FilterChain, error) { return nil, unsupported() }

// WatchFilters fails with ErrUnsupported.
func WatchFilters(context.Context) (<-chan struct{}, error) { return nil, unsupported() }
