//go:build !linux

// Command demo shows what a Redoubt mesh does.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "demo: it takes Linux: its hosts are network namespaces")
	os.Exit(1)
}
