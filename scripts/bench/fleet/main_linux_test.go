package main

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(beHands) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := handsOf(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hands:", err)
		os.Exit(1)
	}
}
