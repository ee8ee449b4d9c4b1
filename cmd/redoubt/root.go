package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/cmd/settings"
	"github.com/redoubt-mesh/redoubt/cmd/usage"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

// Exit codes. Zero means success, or "yes" for commands that answer a question.
const (
	exitFalse    = 1 // the answer is no, or the command failed
	exitUsage    = 2 // the command line, the environment or the settings are invalid
	exitNoAgent  = 3 // no agent responds
	exitNoAccess = 4 // only root or the operator may do this
)

// program is the environment that the commands run in.
type program struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) (string, bool)
	colour   bool
}

// exitError is an error with an exit code. If err is nil, everything has been printed already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run runs one command and returns its exit code.
func run(ctx context.Context, args []string, p program) int {
	root := newRoot(p)
	root.SetArgs(args)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := exitUsage
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(p.err, "redoubt: %s\n", text)
	}
	return code
}

func newRoot(p program) *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt",
		Short: "Zero-trust mesh network on WireGuard",
		Long: "Joins this machine to a Redoubt mesh, and shows its state there.\n\n" +
			"Exit codes: 0 success or true, 1 failure or false, 2 usage error,\n" +
			"3 no agent answers, 4 not allowed. Each --some-flag can also be set as\n" +
			"REDOUBT_SOME_FLAG, or as \"some-flag\" in the file that --config names.",
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentFlags().String("socket", localapi.DefaultSocket, "`PATH` of the agent's socket for local programs")
	for _, c := range []*cobra.Command{
		agentCommand(p), upCommand(p), downCommand(p), statusCommand(p), pingCommand(p), relayCommand(p), whoisCommand(p), whyCommand(p), netcheckCommand(p),
		postureCommand(p), versionCommand(p),
	} {
		root.AddCommand(c)
	}
	settings.Bind(root, p.env)
	usage.Tidy(root)
	return root
}

func onTerminal(f *os.File) bool {
	_, plain := os.LookupEnv("NO_COLOR")
	return !plain && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// client returns a client for the agent at the socket that the command line names.
func client(cmd *cobra.Command) redoubtv1connect.LocalServiceClient {
	return localapi.Client(socket(cmd))
}

func socket(cmd *cobra.Command) string {
	path, err := cmd.Flags().GetString("socket")
	if err != nil {
		panic(err) // every command has the flag
	}
	return path
}

// failed turns an error from the agent, or from connecting to it, into an exitError.
func failed(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	var c *connect.Error
	if !errors.As(err, &c) {
		return &exitError{exitFalse, err}
	}
	switch c.Code() {
	case connect.CodeUnavailable:
		if connect.IsWireError(err) {
			return &exitError{exitFalse, errors.New(c.Message())}
		}
		if errors.Is(err, os.ErrPermission) {
			return &exitError{exitNoAccess, fmt.Errorf("not allowed to talk to the agent at %s: %w", socket(cmd), os.ErrPermission)}
		}
		return &exitError{exitNoAgent, fmt.Errorf("no agent answers at %s; start it with `sudo systemctl start redoubt`, "+
			"or give its --socket", socket(cmd))}
	case connect.CodePermissionDenied:
		return &exitError{exitNoAccess, errors.New(c.Message())}
	case connect.CodeInvalidArgument:
		return &exitError{exitUsage, errors.New(c.Message())}
	}
	return &exitError{exitFalse, errors.New(c.Message())}
}
