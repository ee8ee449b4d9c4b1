package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/proto/join"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// upFlags are the flags of `redoubt up`.
type upFlags struct {
	codeFile, hostname string
	timeout            time.Duration
	json               *bool
	routing            routingFlags
}

func upCommand(p program) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up [CODE | -]",
		Short: "Join the mesh, or reconnect to it",
		Long: "Joins this machine to the mesh that the join code is for, and waits until\n" +
			"packets can pass. Without a code, it reconnects to the mesh that it has joined\n" +
			"before. " +
			"`-` reads the code from standard input.\n\n" +
			"Settings for routes and exit nodes stay until another `up` changes them, which\n" +
			"also works while the node is up. Routes of other nodes are used only with\n" +
			"--accept-routes. Routes that this node advertises must be approved, by an\n" +
			"administrator with `redoubt-coordinator node approve-routes` or by the policy.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, p, args) },
	}
	cmd.Flags().StringVar(&f.codeFile, "code-file", "", "`FILE` that holds the join code")
	cmd.Flags().StringVar(&f.hostname, "hostname", "", "`NAME` in the mesh (default the machine's host name)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait; 0 means no limit")
	f.routing.add(cmd)
	f.json = jsonFlag(cmd)
	return cmd
}

func (f upFlags) run(cmd *cobra.Command, p program, args []string) error {
	code, err := f.code(p, args)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	routing, err := f.routing.change(cmd)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx := cmd.Context()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	stream, err := client(cmd).Up(ctx, &redoubtv1.UpRequest{Code: code, Hostname: f.hostname, Routing: routing})
	if err != nil {
		return failed(cmd, err)
	}
	defer func() { _ = stream.Close() }()
	last := ""
	for stream.Receive() {
		m := stream.Msg()
		if m.GetRunning() {
			return f.print(p, m.GetStatus())
		}
		last = m.GetStep()
		fmt.Fprintln(p.err, last)
	}
	// The deadline is sent to the agent too, whose clock may end the call first.
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || connect.CodeOf(stream.Err()) == connect.CodeDeadlineExceeded {
		if last != "" {
			last = ": " + last
		}
		return &exitError{exitFalse, fmt.Errorf("not up after %v%s; the agent keeps trying, see `redoubt status`", f.timeout, last)}
	}
	return failed(cmd, stream.Err())
}

// code reads the join code, and checks it before anything is sent. It returns "" if none was given.
func (f upFlags) code(p program, args []string) (string, error) {
	var text string
	switch {
	case len(args) == 1 && f.codeFile != "":
		return "", errors.New("give the join code or --code-file, not both")
	case len(args) == 1 && args[0] == "-":
		b, err := io.ReadAll(io.LimitReader(p.in, 2*join.MaxLength))
		if err != nil {
			return "", fmt.Errorf("read the join code: %w", err)
		}
		text = string(b)
	case len(args) == 1:
		text = args[0]
	case f.codeFile != "":
		file, err := os.Open(f.codeFile)
		if err != nil {
			return "", fmt.Errorf("read the join code: %w", err)
		}
		defer file.Close()
		b, err := io.ReadAll(io.LimitReader(file, 2*join.MaxLength))
		if err != nil {
			return "", fmt.Errorf("read the join code: %w", err)
		}
		text = string(b)
	default:
		return "", nil
	}
	text = strings.TrimSpace(text)
	_, err := join.Parse(text)
	return text, err
}

func (f upFlags) print(p program, st *redoubtv1.Status) error {
	if *f.json {
		return printJSON(p.out, statusOf(st))
	}
	n := st.GetNode()
	fmt.Fprintf(p.out, "%s.%s\n%s\n", n.GetName(), st.GetMeshDomain(), strings.Join(n.GetAddresses(), "\n"))
	for _, problem := range st.GetProblems() {
		fmt.Fprintln(p.err, "note:", problem)
	}
	return nil
}

func downCommand(p program) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Disconnect from the mesh until the next up",
		Long: "Takes the tunnel down and restores the host's network configuration. The node\n" +
			"keeps its identity: `redoubt up` reconnects it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := client(cmd).Down(cmd.Context(), &redoubtv1.DownRequest{}); err != nil {
				return failed(cmd, err)
			}
			fmt.Fprintln(p.err, "down")
			return nil
		},
	}
}
