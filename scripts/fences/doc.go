// Package fences enforces the architecture with failing tests: which directory may import which.
package fences
