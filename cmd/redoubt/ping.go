package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// pingFlags are those of `redoubt ping`.
type pingFlags struct {
	count    uint32
	interval time.Duration
	json     *bool
}

func pingCommand(p program) *cobra.Command {
	var f pingFlags
	cmd := &cobra.Command{
		Use:   "ping PEER",
		Short: "Send a peer pings through the mesh",
		Long: "Sends ICMP echoes to a peer (its name, id or address), through the tunnel and\n" +
			"both filters, and says why one was lost, where that is known. Exits with 0 if\n" +
			"an answer came.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, p, args[0]) },
	}
	cmd.Flags().Uint32VarP(&f.count, "count", "c", 4, "how many; 0 goes on for ever")
	cmd.Flags().DurationVarP(&f.interval, "interval", "i", time.Second, "time between two")
	f.json = jsonFlag(cmd)
	return cmd
}

// pingJSON is one line of `ping --json`.
type pingJSON struct {
	Peer     string  `json:"peer"`
	Address  string  `json:"address"`
	Sequence uint32  `json:"sequence"`
	Lost     bool    `json:"lost"`
	RTTms    float64 `json:"rttMs"`
	Path     string  `json:"path"`
	Endpoint string  `json:"endpoint"`
	Reason   string  `json:"reason"`
}

func (f pingFlags) run(cmd *cobra.Command, p program, peer string) error {
	stream, err := client(cmd).Ping(cmd.Context(), &redoubtv1.PingRequest{
		Peer: peer, Count: f.count, IntervalMs: uint32(f.interval.Milliseconds()),
	})
	if err != nil {
		return failed(cmd, err)
	}
	defer func() { _ = stream.Close() }()
	sent, answered := 0, 0
	for stream.Receive() {
		r := stream.Msg()
		sent++
		if !r.GetLost() {
			answered++
		}
		if err := f.print(p, r); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil && cmd.Context().Err() == nil {
		return failed(cmd, err)
	}
	if !*f.json {
		fmt.Fprintf(p.out, "%d sent, %d answered\n", sent, answered)
	}
	if answered == 0 {
		return &exitError{exitFalse, nil}
	}
	return nil
}

func (f pingFlags) print(p program, r *redoubtv1.PingResponse) error {
	rtt := float64(r.GetRttUs()) / 1000
	if *f.json {
		return json.NewEncoder(p.out).Encode(pingJSON{
			r.GetPeerName(), r.GetAddress(), r.GetSequence(), r.GetLost(), rtt, r.GetPath(), r.GetEndpoint(), r.GetReason(),
		})
	}
	c := palette(p.colour)
	if r.GetLost() {
		fmt.Fprint(p.out, wrap(fmt.Sprintf("%s (%s) seq %d %s: %s", r.GetPeerName(), r.GetAddress(), r.GetSequence(), c.bad("lost"), r.GetReason()), "", "  "))
		return nil
	}
	way := ""
	if r.GetPath() != "" {
		way = "  " + r.GetPath() + " " + r.GetEndpoint()
	}
	fmt.Fprintf(p.out, "%s (%s) seq %d %s%s\n", r.GetPeerName(), r.GetAddress(), r.GetSequence(), c.good(fmt.Sprintf("%.2f ms", rtt)), way)
	return nil
}
