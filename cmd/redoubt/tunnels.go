package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// renderTunnels shows the counters of the WireGuard engine, for this node and for each peer, and what the filter denied from
// each.
func renderTunnels(st *redoubtv1.Status, now time.Time, c palette) string {
	w := st.GetWireguard()
	if w == nil {
		return c.warn("the data path is not running, so there are no tunnels") + "\n"
	}
	var b strings.Builder
	field := func(name, text string) { fmt.Fprintf(&b, "%s %s\n", c.dim(fmt.Sprintf("%-11s", name)), text) }
	for i, k := range w.GetKeys() {
		name, text := "node key", k.GetPublicKey()+"  since "+since(now, k.GetSince())
		if i > 0 {
			name, text = "previous", k.GetPublicKey()+"  valid for "+span(time.UnixMilli(k.GetUntil()).Sub(now))
		}
		field(name, text)
	}
	dropped := wrap(reasons(w.GetDrops()), "dropped     ", "            ")
	b.WriteString(c.dim("dropped    ") + strings.TrimPrefix(dropped, "dropped    "))
	rows := [][]string{{"PEER", "KEY", "KEYS", "SESSION", "SESSIONS", "HANDSHAKES", "FAILED", "DROPPED"}}
	for _, p := range st.GetPeers() {
		t := p.GetTunnel()
		rows = append(rows, []string{
			p.GetName(), since(now, t.GetKeySince()), strconv.Itoa(int(t.GetKeys())), since(now, t.GetSessionSince()),
			strconv.Itoa(int(t.GetSessions())), strconv.FormatUint(t.GetHandshakes(), 10), strconv.FormatUint(t.GetUnanswered(), 10),
			strconv.FormatUint(sum(t.GetDrops()), 10),
		})
	}
	if len(rows) > 1 {
		b.WriteString("\n" + table(rows, 0))
	}
	for _, p := range st.GetPeers() {
		if d := p.GetTunnel().GetDrops(); len(d) > 0 {
			b.WriteString(wrap("dropped from "+p.GetName()+": "+reasons(d), "", "  "))
		}
		if d := p.GetDenied(); len(d) > 0 {
			b.WriteString(wrap("denied from "+p.GetName()+": "+reasons(d), "", "  "))
		}
	}
	return b.String()
}

func sum(counters map[string]uint64) (n uint64) {
	for _, v := range counters {
		n += v
	}
	return n
}

// since formats the time since ms, in Unix milliseconds; it is "-" for 0.
func since(now time.Time, ms int64) string {
	if ms == 0 {
		return "-"
	}
	return span(now.Sub(time.UnixMilli(ms)))
}

// reasons lists counters, largest first.
func reasons(counters map[string]uint64) string {
	if len(counters) == 0 {
		return "-"
	}
	names := slices.SortedFunc(maps.Keys(counters), func(a, b string) int {
		return cmp.Or(cmp.Compare(counters[b], counters[a]), cmp.Compare(a, b))
	})
	var list []string
	for _, n := range names {
		list = append(list, fmt.Sprintf("%d %s", counters[n], n))
	}
	return strings.Join(list, ", ")
}
