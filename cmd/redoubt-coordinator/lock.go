package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// lockJSON is a lock as JSON shows it.
type lockJSON struct {
	ID      string `json:"id"`
	Kind    string `json:"kind"`
	Subject string `json:"subject"`
	Name    string `json:"name,omitempty"`
	Reason  string `json:"reason,omitempty"`
	By      string `json:"by"`
	Created string `json:"created"`
	Expires string `json:"expires,omitempty"`
	Nodes   uint32 `json:"nodes"`
}

func lockOf(l *redoubtv1.Lock) lockJSON {
	return lockJSON{
		ID: l.GetId(), Kind: l.GetKind(), Subject: l.GetSubject(), Name: l.GetName(), Reason: l.GetReason(), By: l.GetBy(),
		Created: stamp(l.GetCreated()), Expires: stamp(l.GetExpires()), Nodes: l.GetNodes(),
	}
}

// about describes the subject of a lock for people.
func about(l *redoubtv1.Lock) string {
	if l.GetName() != "" {
		return l.GetKind() + " " + l.GetName()
	}
	return l.GetKind() + " " + strings.TrimPrefix(l.GetSubject(), "tag:")
}

// enforcement is the progress of a revocation or a lock. RevokeNodeResponse and CreateLockResponse implement it.
type enforcement interface {
	GetHolders() uint32
	GetEnforced() uint32
	GetEnforcedUs() uint64
	GetBound() int64
	GetLaggards() []*redoubtv1.Laggard
}

// enforcementJSON is an enforcement as JSON shows it.
type enforcementJSON struct {
	Holders    uint32    `json:"holders"`
	Enforced   uint32    `json:"enforced"`
	EnforcedMs float64   `json:"enforcedMs"`
	Bound      string    `json:"bound,omitempty"`
	Laggards   []laggard `json:"laggards,omitempty"`
}

func enforcementOf(e enforcement) enforcementJSON {
	return enforcementJSON{
		Holders: e.GetHolders(), Enforced: e.GetEnforced(), EnforcedMs: float64(e.GetEnforcedUs()) / 1000, Bound: stamp(e.GetBound()),
		Laggards: laggardsOf(e.GetLaggards()),
	}
}

// enforced prints which nodes refuse what is no longer trusted, how long that took, and which do not refuse it yet.
func (p *program) enforced(e enforcement) {
	took := time.Duration(e.GetEnforcedUs()) * time.Microsecond
	switch {
	case e.GetHolders() == 0:
		fmt.Fprintln(p.out, "no other node knew it")
		return
	case e.GetHolders() == 1 && e.GetEnforced() == 1:
		fmt.Fprintf(p.out, "the one node that knew it now refuses it, after %d ms\n", took.Milliseconds())
		return
	case e.GetHolders() == e.GetEnforced():
		fmt.Fprintf(p.out, "all %d nodes that knew it now refuse it, after %d ms\n", e.GetHolders(), took.Milliseconds())
		return
	}
	fmt.Fprintf(p.out, "%d of %d nodes that knew it now refuse it, after %d ms;\nthe others stop trusting it at %s at the latest:\n",
		e.GetEnforced(), e.GetHolders(), took.Milliseconds(), clock(e.GetBound()))
	p.table(laggardColumns, laggardRows(e.GetLaggards()))
}

func (p *program) lock() *cobra.Command {
	cmd := &cobra.Command{Use: "lock", Short: "Lock machines out of the mesh, and unlock them"}
	cmd.AddCommand(p.lockCreate(), p.lockList(), p.lockDelete())
	return cmd
}

func (p *program) lockCreate() *cobra.Command {
	q := &redoubtv1.CreateLockRequest{}
	var ttl time.Duration
	by := map[string]*string{}
	cmd := &cobra.Command{
		Use: "create", Short: "Lock a user, a machine, a tag or a join code, at once", Args: cobra.NoArgs,
		Long: `Locks the machines of a user, one machine, all with a tag, or all that joined
with one code: nothing passes to or from them, their connections end, and they
get no certificate, until the lock is deleted or expires. Waits for the nodes
that have to enforce it, and lists those that do not yet.`,
		Example: "  redoubt-coordinator lock create --user ann@example.com --reason 'left the company'\n  redoubt-coordinator lock create --node laptop --ttl 2h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for kind, subject := range by {
				if *subject == "" {
					continue
				}
				if q.GetKind() != "" {
					return fmt.Errorf("--%s and --%s: a lock applies to one thing; create two locks", q.GetKind(), kind)
				}
				q.Kind, q.Subject = kind, *subject
			}
			if q.GetKind() == "" {
				return errors.New("nothing to lock: give one of --user, --node, --tag, --device and --token")
			}
			if ttl < 0 {
				return fmt.Errorf("--ttl %v: want a time such as 2h", ttl)
			}
			q.TtlSeconds = uint64((ttl + time.Second - 1) / time.Second)
			a, err := p.client().CreateLock(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					Lock lockJSON `json:"lock"`
					enforcementJSON
				}{lockOf(a.GetLock()), enforcementOf(a)})
			}
			l := a.GetLock()
			fmt.Fprintf(p.out, "%s is locked (lock %s)\n%s%s\n", about(l), l.GetId(), machines(l.GetNodes()), ends(l))
			if l.GetNodes() > 0 {
				p.enforced(a)
			}
			return nil
		},
	}
	f := cmd.Flags()
	for _, k := range []struct{ kind, what string }{
		{"user", "all machines of the user with `LOGIN` name"},
		{"node", "one `NODE` (id, name or address)"},
		{"tag", "all machines with `tag:NAME`"},
		{"device", "the machine with device `KEY`, as printed by node show"},
		{"token", "all machines that joined with the token `ID`"},
	} {
		by[k.kind] = f.String(k.kind, "", k.what)
	}
	f.StringVar(&q.Reason, "reason", "", "`TEXT` for the audit log and the machine's own status")
	f.DurationVar(&ttl, "ttl", 0, "how long; 0 means until it is deleted")
	return cmd
}

func machines(n uint32) string {
	if n == 1 {
		return "1 machine"
	}
	return fmt.Sprintf("%d machines", n)
}

func ends(l *redoubtv1.Lock) string {
	if l.GetExpires() == 0 {
		return ", until `lock delete " + l.GetId() + "`"
	}
	return ", until " + clock(l.GetExpires())
}

func (p *program) lockList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List locks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().ListLocks(cmd.Context(), &redoubtv1.ListLocksRequest{})
			if err != nil {
				return p.explain(err)
			}
			list := make([]lockJSON, 0, len(a.GetLocks()))
			var rows [][]string
			for _, l := range a.GetLocks() {
				list = append(list, lockOf(l))
				rows = append(rows, []string{l.GetId(), about(l), fmt.Sprint(l.GetNodes()), cmp.Or(clock(l.GetExpires()), "deleted"), l.GetBy(), l.GetReason()})
			}
			if p.json {
				return p.print(map[string]any{"locks": list})
			}
			if len(rows) == 0 {
				fmt.Fprintln(p.err, "# nothing is locked")
				return nil
			}
			p.table(lockColumns, rows)
			return nil
		},
	}
}

func (p *program) lockDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete a lock, and trust the machines again", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().DeleteLock(cmd.Context(), &redoubtv1.DeleteLockRequest{Id: args[0]})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					Lock     lockJSON `json:"lock"`
					Unlocked uint32   `json:"unlocked"`
				}{lockOf(a.GetLock()), a.GetUnlocked()})
			}
			fmt.Fprintf(p.out, "lock %s of %s is deleted: %s trusted again\n", args[0], about(a.GetLock()), machines(a.GetUnlocked()))
			if left := a.GetLock().GetNodes() - a.GetUnlocked(); left > 0 {
				fmt.Fprintf(p.out, "%s of it still locked by other locks (`lock list`)\n", machines(left))
			}
			return nil
		},
	}
}
