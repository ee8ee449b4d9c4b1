package bolt_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// stopped is a client that requests a backup and then does not read it.
type stopped struct {
	began   chan struct{}
	release chan struct{}
}

func (s *stopped) Write(b []byte) (int, error) {
	select {
	case <-s.began:
	default:
		close(s.began)
	}
	<-s.release
	return len(b), nil
}

// TestBackupThatIsNotTaken checks that the store stays usable, and can grow, while a backup waits for its reader.
func TestBackupThatIsNotTaken(t *testing.T) {
	db, err := bolt.Open(t.TempDir(), bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	reader := &stopped{began: make(chan struct{}), release: make(chan struct{})}
	backup := make(chan error, 1)
	go func() { backup <- db.Backup(context.Background(), reader) }()
	<-reader.began

	written := make(chan error, 1)
	go func() {
		for i := range 8 {
			if _, err := db.Txn(context.Background(), nil, []store.Op{store.Put(fmt.Sprint(i), make([]byte, 1<<20))}); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("writers wait for the reader of a backup")
	}
	close(reader.release)
	if err := <-backup; err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
