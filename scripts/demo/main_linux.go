// Command demo shows what a Redoubt mesh does, in network namespaces on this machine: a coordinator and three agents, run as
// a person would run them. It exits with 0 only if everything that it shows has really happened.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory with redoubt and redoubt-coordinator")
	sabotage := flag.String("sabotage", "", "break one step on purpose (enrol, tunnel, allow, deny, revoke) and see the demo fail")
	keep := flag.Bool("logs", false, "print the programs' logs at the end")
	flag.Parse()
	err := lab.Enter()
	if err == nil {
		err = lab.TUN()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n\n    sudo make demo\n\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	err = run(ctx, *bin, *sabotage, *keep)
	cancel()
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, sabotage string, keep bool) error {
	begin := time.Now()
	out := printer{colour: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
	out.title("Redoubt: a mesh on this machine")
	out.note("A coordinator and three agents, each on a host of its own: network namespaces")
	out.note("that vanish afterwards. Lines with $ are what you would type.")

	s := &story{out: out, sabotage: sabotage}
	err := s.tell(ctx, bin)
	if err != nil {
		out.fail(err)
	}
	if keep || err != nil {
		s.logs()
	}
	if s.mesh != nil {
		err = errors.Join(err, s.mesh.Close())
	}
	if err != nil {
		return err
	}
	out.done(fmt.Sprintf("All of it happened, in %.1f s. Nothing is left behind.", time.Since(begin).Seconds()))
	return nil
}
