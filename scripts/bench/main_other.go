//go:build !linux

// Command bench measures Redoubt on this machine.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it takes Linux: its hosts are network namespaces")
	os.Exit(1)
}
