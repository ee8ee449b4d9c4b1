package coordinator

import (
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// Restore makes a coordinator's data of a backup, in a directory that has none. A new epoch begins; see directory.Restored for
// what that means. The keys are in no backup: they are put into DIR/pki by whoever kept them.
func Restore(backup, dir string, now time.Time, by string) (directory.Restoration, error) {
	var r directory.Restoration
	err := bolt.Restore(backup, dir, bolt.Options{Migrations: directory.Migrations()}, func(t store.Tx) (err error) {
		r, err = directory.Restored(t, now, by)
		return err
	})
	return r, err
}
