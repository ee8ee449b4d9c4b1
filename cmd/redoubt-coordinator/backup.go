package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func (p *program) backup() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Back up the data, without the keys, while the coordinator runs", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, err := p.client().Backup(cmd.Context(), &redoubtv1.BackupRequest{})
			if err != nil {
				return p.explain(err)
			}
			defer func() { _ = stream.Close() }()
			fill := func(w io.Writer) (err error) {
				for stream.Receive() {
					if _, err := w.Write(stream.Msg().GetData()); err != nil {
						return err
					}
				}
				return p.explain(stream.Err())
			}
			if args[0] == "-" {
				return fill(p.out)
			}
			size, err := replace(args[0], fill)
			if err != nil {
				return err
			}
			if p.json {
				return p.print(map[string]any{"file": args[0], "bytes": size})
			}
			fmt.Fprintf(p.out, "%s: %d bytes\n", args[0], size)
			fmt.Fprintf(p.err, "# it does not contain the keys: keep a copy of %s in a safe place\n", filepath.Join(p.data, "pki"))
			return nil
		},
	}
}

// replace writes a file of mode 0600 atomically: it appears complete or not at all. Once it returns, the file survives a loss of
// power, so that what was copied to it may be removed elsewhere.
func replace(path string, fill func(io.Writer) error) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := fill(f); err != nil {
		return 0, err
	}
	if size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return 0, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	return size, durable.Rename(f.Name(), path)
}

func (p *program) restore() *cobra.Command {
	return &cobra.Command{
		Use: "restore FILE", Short: "Restore a backup, into an empty data directory", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			by := "uid " + fmt.Sprint(os.Getuid())
			if u, err := user.Current(); err == nil {
				by = u.Username
			}
			r, err := coordinator.Restore(args[0], p.data, time.Now(), by)
			if err != nil {
				return err
			}
			if p.json {
				return p.print(map[string]any{
					"mesh": r.Mesh.ID, "epoch": r.Epoch, "nodes": r.Nodes, "voidedTokens": r.Voided, "latest": r.Latest.UTC().Format(time.RFC3339), "data": p.data,
				})
			}
			fmt.Fprintf(p.out, `Restored: mesh %s
  %d nodes, as of %s
Changes after that are lost:
  nodes revoked or deleted since then are trusted again: revoke them
  nodes that joined since then must join again
  %d join codes that could still have been used are void
Before you start it, put the keys back:
  %s
`, r.Mesh.ID, r.Nodes, r.Latest.Local().Format(time.DateTime), r.Voided, filepath.Join(p.data, "pki"))
			return nil
		},
	}
}
