// Package fences holds the architecture as a failing test: which folder may import which.
package fences
