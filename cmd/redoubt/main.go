// Command redoubt runs the agent that makes a machine part of a mesh, and controls it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], program{
		in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.LookupEnv, colour: onTerminal(os.Stdout),
	}))
}
