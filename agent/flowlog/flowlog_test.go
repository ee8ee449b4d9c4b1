package flowlog

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func record(kind filter.Kind, dst uint8, port uint16) filter.Record {
	return filter.Record{
		Kind: kind, Direction: proto.Out, Reason: filter.NoRule, Version: proto.Version{Epoch: 1, N: 7}, Proto: proto.ProtoTCP,
		Self: filter.Party{ID: 1, Name: "web", Who: "tag:web"}, Peer: filter.Party{ID: 2, Name: "db", Who: "ann@example.com"},
		Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, 0, 1}), 40000+port),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, 0, dst}), port),
	}
}

func text(l Line) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", l.Level, l.Message)
	for _, a := range l.Attrs {
		fmt.Fprintf(&b, " %s", a)
	}
	return b.String()
}

func TestDeniedOnceAMinute(t *testing.T) {
	a := New()
	l, ok := a.Add(noon, record(filter.Denied, 2, 443))
	want := "INFO denied direction=out from=web from_who=tag:web src=100.64.0.1 to=db to_who=ann@example.com dst=100.64.0.2 " +
		"service=tcp:443 reason=no rule lets these nodes connect version=1.7 count=1"
	if !ok || text(l) != want {
		t.Errorf("%v %s", ok, text(l))
	}
	for i := range 100 {
		r := record(filter.Denied, 2, 443)
		r.Local = netip.AddrPortFrom(r.Local.Addr(), uint16(30000+i)) // each attempt from another port
		if l, ok := a.Add(noon.Add(time.Second), r); ok {
			t.Fatalf("a repetition was told: %s", text(l))
		}
	}
	if l := a.Flush(noon.Add(59*time.Second), 0); len(l) != 0 {
		t.Errorf("told within the minute: %v", l)
	}
	lines := a.Flush(noon.Add(time.Minute), 0)
	if len(lines) != 1 || !strings.Contains(text(lines[0]), "count=100") {
		t.Errorf("after a minute: %v", lines)
	}
	if l := a.Flush(noon.Add(2*time.Minute), 0); len(l) != 0 {
		t.Errorf("told although it had ended: %v", l)
	}
	if _, ok := a.Add(noon.Add(3*time.Minute), record(filter.Denied, 2, 443)); !ok {
		t.Error("a denial that had ended is not new again")
	}
}

func TestFlows(t *testing.T) {
	a := New()
	r := record(filter.FlowEnd, 2, 443)
	r.Direction, r.Reason, r.Rule = proto.In, filter.Revoked, proto.Origin{Path: "grants[3]", Line: 12}
	r.Local, r.Remote = r.Remote, r.Local
	l, _ := a.Add(noon, r)
	for _, want := range []string{
		"INFO flow cut direction=in", "from=db", "to=web", "service=tcp:443", "reason=no longer permitted", "rule=grants[3] line=12", "lasted=0s",
	} {
		if !strings.Contains(text(l), want) {
			t.Errorf("%s\nlacks %q", text(l), want)
		}
	}
	if l, ok := a.Add(noon, record(filter.FlowStart, 2, 443)); !ok || l.Level != slog.LevelDebug {
		t.Errorf("%s", text(l))
	}
	if l, ok := a.Add(noon, record(filter.FlowEnd, 2, 443)); !ok || l.Level != slog.LevelDebug {
		t.Errorf("%s", text(l))
	}
	asked := record(filter.FlowStart, 2, 443)
	asked.Posture = filter.Posture{0xab, 7: 0x01}
	if l, _ := a.Add(noon, asked); !strings.HasSuffix(text(l), "version=1.7 posture=ab00000000000001") {
		t.Errorf("%s", text(l))
	}
	unknown := record(filter.Denied, 9, 0)
	unknown.Peer, unknown.Proto = filter.Party{}, proto.ProtoGRE
	if l, _ := a.Add(noon, unknown); !strings.Contains(text(l), "to=? ") || !strings.Contains(text(l), "service=gre ") {
		t.Errorf("%s", text(l))
	}
}

func TestGaps(t *testing.T) {
	a := New()
	if l := a.Flush(noon, 5); len(l) != 1 || !strings.Contains(text(l[0]), "lost=5") {
		t.Errorf("%v", l)
	}
	if l := a.Flush(noon, 5); len(l) != 0 {
		t.Errorf("told twice: %v", l)
	}
}

// TestEveryDenialIsCounted checks that, however many denials come, every one is counted in exactly one line, each denial has
// at most one line a minute, and memory is bounded.
func TestEveryDenialIsCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := New()
		now := noon
		sent, told := 0, uint64(0)
		last := map[string]time.Time{}
		take := func(l Line) {
			key := ""
			for _, at := range l.Attrs {
				if at.Key == "count" {
					told += at.Value.Uint64()
				} else {
					key += at.String()
				}
			}
			if before, ok := last[key]; ok && now.Sub(before) < Window {
				t.Fatalf("two lines within %v: %s", now.Sub(before), text(l))
			}
			last[key] = now
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "seconds")) * time.Second)
			for range rapid.IntRange(0, 400).Draw(t, "denials") {
				sent++
				port := uint16(rapid.IntRange(1, 3000).Draw(t, "port"))
				if l, ok := a.Add(now, record(filter.Denied, 2, port)); ok {
					take(l)
				}
			}
			if len(a.denials) > MaxDenials {
				t.Fatalf("%d denials are remembered", len(a.denials))
			}
			for _, l := range a.Flush(now, 0) {
				take(l)
			}
		}
		now = now.Add(Window)
		for _, l := range a.Flush(now, 0) {
			take(l)
		}
		if uint64(sent) != told {
			t.Fatalf("%d denials, lines for %d", sent, told)
		}
	})
}

// TestWouldDeny checks that monitored traffic is reported as denials are: once, and then with a count.
func TestWouldDeny(t *testing.T) {
	a := New()
	r := record(filter.WouldDeny, 2, 443)
	r.Rule, r.Watched, r.Until = proto.Origin{Path: "enforcement[0]", Line: 30}, true, noon.Add(24*time.Hour)
	r.Reason, r.Near = filter.NoService, proto.Origin{Path: "grants[2]", Line: 9}
	l, ok := a.Add(noon, r)
	want := "INFO would-deny direction=out from=web from_who=tag:web src=100.64.0.1 to=db to_who=ann@example.com dst=100.64.0.2 " +
		"service=tcp:443 reason=no rule names this protocol and port rule=enforcement[0] line=30 version=1.7 " +
		"nearest=grants[2] nearest_line=9 until=2026-05-02T12:00:00Z count=1"
	if !ok || text(l) != want {
		t.Errorf("%v\n%s\nwant\n%s", ok, text(l), want)
	}
	denied := record(filter.Denied, 2, 443)
	denied.Reason = filter.NoService
	if _, ok := a.Add(noon, denied); !ok {
		t.Error("a denial hides behind what was watched")
	}
	for range 3 {
		if l, ok := a.Add(noon, r); ok {
			t.Errorf("a repetition was told: %s", text(l))
		}
	}
	if lines := a.Flush(noon.Add(time.Minute), 0); len(lines) != 1 || !strings.Contains(text(lines[0]), "would-deny") ||
		!strings.Contains(text(lines[0]), "count=3") {
		t.Errorf("%v", lines)
	}
	cut := record(filter.FlowEnd, 2, 443)
	cut.Reason, cut.Near = filter.Revoked, proto.Origin{Path: "deny[1]", Line: 4}
	if l, _ := a.Add(noon, cut); !strings.Contains(text(l), "denied_by=deny[1] denied_by_line=4") {
		t.Error(text(l))
	}
}
