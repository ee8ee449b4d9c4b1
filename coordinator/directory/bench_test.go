package directory

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	"github.com/redoubt-mesh/redoubt/proto"
)

// BenchmarkEnroll50 measures enrolling 50 machines at once, on disk; each operation enrols all 50.
func BenchmarkEnroll50(b *testing.B) {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "data"), bolt.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	r := newRigOn(b, db, Plan{})
	defer r.Close()
	tok := r.reusable()
	_, first, _ := db.List(b.Context(), headKey)
	for b.Loop() {
		b.StopTimer()
		crowd := make([]EnrollRequest, 50)
		for i := range crowd {
			crowd[i] = machine(b, tok, "host")
		}
		b.StartTimer()
		var wait sync.WaitGroup
		for _, q := range crowd {
			wait.Go(func() { r.enroll(q) })
		}
		wait.Wait()
	}
	_, last, _ := db.List(b.Context(), headKey)
	b.ReportMetric(float64(last-first)/float64(b.N), "transactions/op")
}

// BenchmarkEndpoints measures a change in memory only, in a mesh of a thousand nodes.
func BenchmarkEndpoints(b *testing.B) {
	r := newRigOn(b, store.NewMemory(), Plan{})
	defer r.Close()
	tok := r.reusable()
	var last *Node
	for range 1000 {
		last = r.enroll(machine(b, tok, "host"))
	}
	for i := 0; b.Loop(); i++ {
		e := endpoint("192.0.2.1:1")
		if i%2 == 0 {
			e = endpoint("192.0.2.1:2")
		}
		if err := r.SetReach(b.Context(), last.ID, proto.Reach{Endpoints: []proto.Endpoint{e}}); err != nil {
			b.Fatal(err)
		}
	}
}
