package osnet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	rtnl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxFilterRules bounds how many rules Filters reads. It does not judge a larger ruleset.
const maxFilterRules = 20_000

// filterFold is how long further changes of packet filters are batched after one was reported at once.
const filterFold = 100 * time.Millisecond

// Filters returns the nftables chains in this network namespace that belong to anyone but agents. They include those of iptables
// if it is the nftables variant.
func Filters() ([]FilterChain, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *rtnl.Conn) error {
		return c.SetDeadline(time.Now().Add(answerTime))
	}))
	if err != nil {
		return nil, guardError("open a socket to nftables", err)
	}
	defer conn.CloseLasting() //nolint:errcheck // nothing depends on it: all was read
	chains, err := conn.ListChains()
	if err != nil {
		return nil, guardError("list nftables' chains", err)
	}
	var out []FilterChain
	rules := 0
	for _, c := range chains {
		family, ok := familyName[c.Table.Family]
		if !ok || strings.HasPrefix(c.Table.Name, TablePrefix) || c.Hooknum != nil && *c.Hooknum != *nftables.ChainHookInput {
			continue
		}
		f := FilterChain{
			Family: family, Table: c.Table.Name, Name: c.Name,
			Input: c.Hooknum != nil && c.Type == nftables.ChainTypeFilter,
			Drops: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		}
		got, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, guardError("list the rules of nftables' chain "+c.Name, err)
		}
		if rules += len(got); rules > maxFilterRules {
			return nil, fmt.Errorf("nftables holds more than %d rules, which are too many to judge", maxFilterRules)
		}
		for _, r := range got {
			f.Rules = append(f.Rules, filterRule(r.Exprs))
		}
		out = append(out, f)
	}
	return out, nil
}

// filterRule summarizes a rule. Any expression not known to be unconditional counts as a condition.
func filterRule(exprs []expr.Any) (out FilterRule) {
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Notrack:
		case *expr.Reject:
			out.Verdict = VerdictDrop
		case *expr.Target:
			switch e.Name {
			case "LOG", "NFLOG":
			case "REJECT", "DROP":
				out.Verdict = VerdictDrop
			case "NFQUEUE", "QUEUE":
				out.Verdict = VerdictAccept // like nftables' own queue: a program decides, and we cannot tell how
			default:
				out.Conditional = true
			}
		case *expr.Verdict:
			out.Verdict, out.Target = verdictName(e)
		default:
			out.Conditional = true
		}
	}
	return out
}

func verdictName(v *expr.Verdict) (verdict, target string) {
	switch v.Kind {
	case expr.VerdictAccept, expr.VerdictStop, expr.VerdictStolen, expr.VerdictQueue:
		return VerdictAccept, ""
	case expr.VerdictDrop:
		return VerdictDrop, ""
	case expr.VerdictJump:
		return VerdictJump, v.Chain
	case expr.VerdictGoto:
		return VerdictGoto, v.Chain
	case expr.VerdictReturn:
		return VerdictReturn, ""
	}
	return VerdictNone, ""
}

// WatchFilters reports changes of nftables in this network namespace: the first at once, further ones batched. The channel is
// closed when the context ends or the kernel stops reporting changes.
func WatchFilters(ctx context.Context) (<-chan struct{}, error) {
	l, err := listen(source{unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, nil})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.hangUp() }) // it only listened
	out := make(chan struct{}, 1)
	go func() {
		defer close(out)
		defer stop()
		fold(l.events, filterFold, func() bool {
			select {
			case out <- struct{}{}:
			default: // the pending report stands for this one
			}
			return true
		})
	}()
	return out, nil
}
