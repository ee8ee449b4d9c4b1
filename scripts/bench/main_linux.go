// Command bench measures Redoubt on this machine, in a world of network namespaces, and prints tables. Machines differ, and
// vary from hour to hour: only ratios within one run are comparable.
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
	peers := flag.Int("peers", 10000, "how many idle peers a node has")
	starts := flag.Int("starts", 5, "how many times it starts with them")
	floods := flag.Int("floods", 5, "interleaved rounds of floods")
	relayRounds := flag.Int("relays", 5, "interleaved rounds of throughput through a relay")
	only := flag.String("only", "", "run only throughput, control, relay, flood or idle")
	measure := flag.String("measure", "", "measure only these parts of throughput: tcp1,tcp4,back1,back4,udp,rtt")
	other := flag.String("other", "", "directory with another build of Redoubt, to compare its throughput with")
	flag.Parse()
	if err := lab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	for i, part := range []struct {
		name string
		run  func() error
	}{
		{"throughput", func() error { return throughput(ctx, *bin, *other, *measure, *rounds, *each) }},
		{"control", func() error { return control(ctx, *bin, *joins, *changes) }},
		{"relay", func() error { return relays(ctx, *bin, *other, *relayRounds, *each) }},
		{"flood", func() error { return flood(ctx, *bin, *floods, 3**each) }},
		{"idle", func() error { return idle(ctx, *bin, *starts, *peers) }},
	} {
		if *only != "" && *only != part.name {
			continue
		}
		if i > 0 {
			fmt.Println()
		}
		if err := part.run(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", part.name, err)
			os.Exit(1)
		}
	}
}
