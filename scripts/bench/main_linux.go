// Command bench measures Redoubt on this machine, in a world of network namespaces, and prints tables. Machines differ, and
// differ from hour to hour: what compares is a ratio within one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory with redoubt, redoubt-coordinator and wireguard-go")
	rounds := flag.Int("rounds", 15, "interleaved rounds of throughput")
	each := flag.Duration("each", time.Second, "how long one measurement of throughput takes")
	joins := flag.Int("joins", 9, "how many nodes join, for the time from up to first ping")
	changes := flag.Int("changes", 20, "how many policies are applied")
	other := flag.String("other", "", "directory with another build of Redoubt, to compare with")
	only := flag.String("only", "", "measure no more than these of tcp1,tcp4,back1,back4,udp,rtt")
	flag.Parse()
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := run(ctx, *bin, *other, *only, *rounds, *each, *joins, *changes); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, other, only string, rounds int, each time.Duration, joins, changes int) error {
	if err := throughput(ctx, bin, other, only, rounds, each); err != nil {
		return fmt.Errorf("throughput: %w", err)
	}
	if only != "" {
		return nil
	}
	fmt.Println()
	if err := control(ctx, bin, joins, changes); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}
