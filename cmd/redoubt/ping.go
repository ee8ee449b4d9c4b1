package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/agent/localapi"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// pingFlags are the flags of `redoubt ping`.
type pingFlags struct {
	count             uint32
	interval, timeout time.Duration
	untilDirect       bool
	json              *bool
}

// untilDirectCount is the number of pings to wait for a direct path, unless --count is given.
const untilDirectCount = 10

func pingCommand(p program) *cobra.Command {
	var f pingFlags
	cmd := &cobra.Command{
		Use:   "ping PEER",
		Short: "Ping a peer through the mesh",
		Long: "Sends ICMP echo requests to a peer (its name, id or address), through the tunnel\n" +
			"and both filters. Shows the path of each reply, the round-trip time of that path\n" +
			"alone and, if known, why a reply was lost. Changes of the path are reported as\n" +
			"they happen. Exits with 0 if a reply came; with --until-direct, which stops at\n" +
			"the first reply that came directly, only if there was one.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.untilDirect && !cmd.Flags().Changed("count") {
				f.count = untilDirectCount
			}
			return f.run(cmd, p, args[0])
		},
	}
	cmd.Flags().Uint32VarP(&f.count, "count", "c", 4, fmt.Sprintf("how many; 0 means no limit; %d with --until-direct", untilDirectCount))
	cmd.Flags().DurationVarP(&f.interval, "interval", "i", time.Second, "time between pings, 200ms to 1m")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 0, "stop after this time; 0 means never")
	cmd.Flags().BoolVar(&f.untilDirect, "until-direct", false, "stop at the first reply that came directly")
	f.json = jsonFlag(cmd)
	return cmd
}

// The types that `ping --json` prints, one object per line.
type (
	pingJSON struct {
		Event    string  `json:"event"` // echo
		Peer     string  `json:"peer"`
		Address  string  `json:"address"`
		Sequence uint32  `json:"sequence"`
		Lost     bool    `json:"lost"`
		RTTms    float64 `json:"rttMs"`
		Reason   string  `json:"reason"`
		pathJSON
	}
	pingMovedJSON struct {
		Event     string  `json:"event"` // path
		Peer      string  `json:"peer"`
		Address   string  `json:"address"`
		ElapsedMs float64 `json:"elapsedMs"` // since the first echo
		pathJSON
		Was wayJSON `json:"was"`
	}
	pingSummaryJSON struct {
		Event    string         `json:"event"` // summary
		Sent     int            `json:"sent"`
		Answered int            `json:"answered"`
		Lost     float64        `json:"lostPercent"`
		Min      *float64       `json:"minMs"` // null if there was no reply, like the next two
		Median   *float64       `json:"medianMs"`
		Max      *float64       `json:"maxMs"`
		Paths    []pingWaysJSON `json:"paths"` // in the order in which they were first seen
	}
	pingWaysJSON struct {
		wayJSON
		Answers int `json:"answers"`
	}
)

// maxRTTs is the number of latest replies that the median covers: a ping may run for days.
const maxRTTs = 1 << 16

// pinging is the state of a running ping.
type pinging struct {
	begun    time.Time
	sent     int
	answered int
	rtts     []time.Duration // the latest
	min, max time.Duration
	ways     []pingWaysJSON
	now      wayJSON // empty: none so far
	peer     string
	why      string // why the path is not direct
	directly bool   // the last reply came directly
}

// take counts a message from the agent.
func (s *pinging) take(r *redoubtv1.PingResponse) {
	s.now, s.why, s.peer = wayOf(r), r.GetPathWhy(), r.GetPeerName()
	i := slices.IndexFunc(s.ways, func(w pingWaysJSON) bool { return w.wayJSON == s.now })
	if i < 0 && s.now.Path != "" {
		i = len(s.ways)
		s.ways = append(s.ways, pingWaysJSON{wayJSON: s.now})
	}
	if r.GetMoved() {
		return
	}
	s.sent++
	if s.directly = !r.GetLost() && r.GetPath() == "direct" && !r.GetPathDoubt(); r.GetLost() {
		return
	}
	if i >= 0 {
		s.ways[i].Answers++
	}
	rtt := time.Duration(r.GetRttUs()) * time.Microsecond
	if s.answered == 0 || rtt < s.min {
		s.min = rtt
	}
	s.max = max(s.max, rtt)
	if len(s.rtts) < maxRTTs {
		s.rtts = append(s.rtts, rtt)
	} else {
		s.rtts[s.answered%maxRTTs] = rtt // in place of the oldest
	}
	s.answered++
}

// median returns the median round-trip time. There must be at least one reply.
func (s *pinging) median() time.Duration {
	sorted := slices.Sorted(slices.Values(s.rtts))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func (f pingFlags) run(cmd *cobra.Command, p program, peer string) error {
	ctx := cmd.Context()
	if f.interval < localapi.MinPingInterval || f.interval > localapi.MaxPingInterval {
		return &exitError{exitUsage, fmt.Errorf("--interval %s: want %s to %s", f.interval, localapi.MinPingInterval, localapi.MaxPingInterval)}
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	stream, err := client(cmd).Ping(ctx, &redoubtv1.PingRequest{
		Peer: peer, Count: f.count, IntervalMs: uint32(f.interval.Milliseconds()), UntilDirect: f.untilDirect,
	})
	if err != nil {
		return failed(cmd, err)
	}
	defer func() { _ = stream.Close() }()
	s := &pinging{begun: time.Now()}
	for stream.Receive() {
		was := s.now
		s.take(stream.Msg())
		if err := f.print(p, s, was, stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return failed(cmd, err)
	}
	if err := f.summary(p, s); err != nil {
		return err
	}
	switch {
	case f.untilDirect && !s.directly:
		return &exitError{exitFalse, fmt.Errorf("no direct path: %s", s.notDirect())}
	case s.answered == 0:
		return &exitError{exitFalse, nil}
	}
	return nil
}

// notDirect explains why no reply came directly.
func (s *pinging) notDirect() string {
	switch {
	case s.sent == 0:
		return "the timeout left no time for a ping"
	case s.answered == 0:
		return "no ping was answered"
	case s.why != "":
		return s.why
	}
	return "the last ping was lost"
}

func (f pingFlags) print(p program, s *pinging, was wayJSON, r *redoubtv1.PingResponse) error {
	elapsed := time.Since(s.begun)
	switch {
	case *f.json && r.GetMoved():
		return json.NewEncoder(p.out).Encode(pingMovedJSON{"path", r.GetPeerName(), r.GetAddress(), millis(elapsed), pathOf(r), was})
	case *f.json:
		rtt := time.Duration(r.GetRttUs()) * time.Microsecond
		return json.NewEncoder(p.out).Encode(pingJSON{
			"echo", r.GetPeerName(), r.GetAddress(), r.GetSequence(), r.GetLost(), millis(rtt), r.GetReason(), pathOf(r),
		})
	}
	_, err := fmt.Fprintln(p.out, pingLine(r, was, elapsed, palette(p.colour))) // one line each, for programs that count lines
	return err
}

// pingLine formats a message from the agent for people.
func pingLine(r *redoubtv1.PingResponse, was wayJSON, elapsed time.Duration, c palette) string {
	way := wayOf(r)
	if r.GetMoved() {
		line := fmt.Sprintf("%s %s after %.2f s, was %s", c.warn("now"), way.via(), elapsed.Seconds(), was.via())
		if why := r.GetPathWhy(); why != "" {
			line += ": " + why
		}
		return line
	}
	line := fmt.Sprintf("%s (%s) seq %d ", r.GetPeerName(), r.GetAddress(), r.GetSequence())
	if r.GetLost() {
		return line + c.bad("lost") + ": " + r.GetReason()
	}
	line += c.good(fmt.Sprintf("%.2f ms", millis(time.Duration(r.GetRttUs())*time.Microsecond)))
	if way.Path == "" {
		return line
	}
	line += ", " + way.String()
	if us := r.GetPathRttUs(); us > 0 {
		line += fmt.Sprintf(" (path %.2f ms)", float64(us)/1000)
	}
	if r.GetPathDoubt() {
		line += " also through the relay: " + r.GetPathWhy()
	}
	return line
}

// summary prints the totals of all pings.
func (f pingFlags) summary(p program, s *pinging) error {
	lost := 0.0
	if s.sent > 0 {
		lost = float64(s.sent-s.answered) / float64(s.sent) * 100
	}
	if *f.json {
		out := pingSummaryJSON{"summary", s.sent, s.answered, lost, nil, nil, nil, append([]pingWaysJSON{}, s.ways...)}
		if s.answered > 0 {
			least, median, most := millis(s.min), millis(s.median()), millis(s.max)
			out.Min, out.Median, out.Max = &least, &median, &most
		}
		return json.NewEncoder(p.out).Encode(out)
	}
	text := fmt.Sprintf("%d sent, %d answered, %.0f%% lost\n", s.sent, s.answered, lost)
	if s.answered > 0 {
		text += fmt.Sprintf("round trip %.2f ms min, %.2f ms median, %.2f ms max\n", millis(s.min), millis(s.median()), millis(s.max))
	}
	if len(s.ways) > 0 {
		var ways []string
		for _, w := range s.ways {
			ways = append(ways, fmt.Sprintf("%s (%d)", w, w.Answers))
		}
		text += wrap(strings.Join(ways, ", "), "paths: ", "  ")
	}
	if s.now.Path == "relay" && !f.untilDirect && s.why != "" {
		text += wrap(s.why, "not direct: ", "  ")
	}
	_, err := fmt.Fprint(p.out, text)
	return err
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
