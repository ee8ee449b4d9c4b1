package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/cmd/settings"
	"github.com/redoubt-mesh/redoubt/cmd/usage"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

const (
	defaultData = "/var/lib/redoubt-coordinator"
	socketName  = "admin.sock"
)

// program holds what the commands share, independent of the process: streams, environment and global flags.
type program struct {
	in       io.Reader
	out, err io.Writer
	lookup   func(string) (string, bool)

	data   string
	socket string
	json   bool
}

// errSaid fails a command that has already printed the reason.
var errSaid = errors.New("said already")

// troubleError fails a command with exit code 2, for commands where exit code 1 is a result.
type troubleError struct{ error }

func (e troubleError) Unwrap() error { return e.error }

// run runs one command and returns the exit code: 0 means success, or "yes" for commands that answer a question.
func (p *program) run(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case !errors.Is(err, errSaid):
		fmt.Fprintf(p.err, "redoubt-coordinator: %v\n", err)
	}
	var trouble troubleError
	if errors.As(err, &trouble) {
		return 2
	}
	return 1
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt-coordinator",
		Short: "The control server of a Redoubt mesh",
		Long: `The control server of a Redoubt mesh: enrols machines, issues their
certificates, and hands each the part of the policy that concerns it.

Every flag can also be set as an environment variable (--cert-lifetime as
REDOUBT_CERT_LIFETIME), or in the file that --config names
({"cert-lifetime": "1h"}).`,
		SilenceErrors: true, SilenceUsage: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&p.data, "data", defaultData, "`DIR` with the coordinator's data")
	root.PersistentFlags().StringVar(&p.socket, "admin-socket", "", "`PATH` of the admin socket (default DIR/"+socketName+")")
	root.PersistentFlags().BoolVar(&p.json, "json", false, "print JSON")
	root.AddCommand(p.serve(), p.token(), p.node(), p.user(), p.policy(), p.lock(), p.rootCommand(), p.audit(), p.backup(), p.restore(), p.version())
	settings.Bind(root, p.lookup)
	usage.Tidy(root)
	return root
}

func (p *program) socketPath() string {
	if p.socket != "" {
		return p.socket
	}
	return filepath.Join(p.data, socketName)
}

func (p *program) client() redoubtv1connect.AdminServiceClient { return api.NewClient(p.socketPath()) }

// explain turns the error of a failed call into one that a person can act on.
func (p *program) explain(err error) error {
	var e *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no coordinator listens on %s; check that it is running (redoubt-coordinator serve), with the same --data or --admin-socket", p.socketPath())
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is only for root and the user that the coordinator runs as; try again with sudo", p.socketPath())
	case errors.As(err, &e):
		return errors.New(e.Message())
	}
	return err
}

// print prints v as JSON.
func (p *program) print(v any) error {
	enc := json.NewEncoder(p.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := build()
			if p.json {
				return p.print(v)
			}
			fmt.Fprintf(p.out, "redoubt-coordinator %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			return nil
		},
	}
}

type buildInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// build returns the version of this program and what it was built with.
func build() buildInfo {
	v := buildInfo{Version: "devel", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	return v
}
