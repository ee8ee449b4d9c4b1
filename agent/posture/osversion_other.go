//go:build !linux

package posture

func osVersion() string { return "" }
