package store_test

import (
	"io"
	"testing"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	storetest.Run(t, storetest.Engine{
		Open: func(testing.TB) store.Store { return store.NewMemory() },
		Restore: func(t testing.TB, r io.Reader) store.Store {
			m, err := store.LoadMemory(r)
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
	})
}
