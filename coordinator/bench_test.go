package coordinator

import (
	"context"
	"fmt"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// attachedNodes is the number of nodes for which revocation latency is promised.
const attachedNodes = 1000

// crowd returns a coordinator with many attached nodes, all of which know the nodes with tag:b. All share one process with it.
func crowd(b *testing.B) (*rig, []*stream) {
	b.Helper()
	r := &rig{t: b, dir: b.TempDir()}
	r.start(Config{})
	b.Cleanup(r.stop)
	r.apply(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:443"]}]}`)
	all := make([]*stream, attachedNodes)
	code := r.code(&redoubtv1.CreateTokenRequest{Reusable: true})
	for i := range all {
		m := r.machine(fmt.Sprintf("node%d", i))
		if err := m.enrol(code); err != nil {
			b.Fatal(err)
		}
		all[i] = m.attach(nil)
	}
	b.Cleanup(func() {
		for _, s := range all {
			s.close()
		}
	})
	await(b, r)
	return r, all
}

// await waits until every node enforces its current netmap.
func await(b *testing.B, r *rig) {
	b.Helper()
	for {
		st, err := r.co.Admin().PolicyStatus(context.Background(), &redoubtv1.PolicyStatusRequest{WaitMs: 60_000})
		if err != nil {
			b.Fatal(err)
		}
		if len(st.GetLaggards()) == 0 {
			return
		}
	}
}

// BenchmarkRevocation measures the time from the decision to the last of 1,000 acknowledgements.
func BenchmarkRevocation(b *testing.B) {
	r, _ := crowd(b)
	var most time.Duration
	for b.Loop() {
		b.StopTimer()
		r.join("target", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		await1(b, r, "target")
		b.StartTimer()
		a, err := r.co.Admin().RevokeNode(context.Background(), &redoubtv1.RevokeNodeRequest{Node: "target"})
		if err != nil || a.GetEnforced() != attachedNodes {
			b.Fatalf("%v, %v", a, err)
		}
		most = max(most, time.Duration(a.GetEnforcedUs())*time.Microsecond)
		b.StopTimer()
		if _, err := r.co.Admin().DeleteNode(context.Background(), &redoubtv1.DeleteNodeRequest{Node: "target"}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(most.Milliseconds()), "ms-worst")
}

// await1 is await, except for one node that never attaches.
func await1(b *testing.B, r *rig, but string) {
	b.Helper()
	for {
		v := r.co.directory.Snapshot().Version()
		st := r.co.hub.Settled(context.Background(), v)
		if len(st.Laggards) == 1 && st.Laggards[0].Name == but {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// BenchmarkPolicyChange measures the time from the decision to the last of 1,000 acknowledgements.
func BenchmarkPolicyChange(b *testing.B) {
	r, _ := crowd(b)
	i := 0
	for b.Loop() {
		i++
		r.apply(fmt.Sprintf(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:%d"]}]}`, i))
		await(b, r)
	}
}
