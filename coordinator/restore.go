package coordinator

import (
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// Restore creates a coordinator's data from a backup, in a directory that has none. A new epoch begins; see directory.Restored
// for the consequences. Backups do not contain the keys: whoever kept them must put them into DIR/pki.
func Restore(backup, dir string, now time.Time, by string) (directory.Restoration, error) {
	var r directory.Restoration
	err := bolt.Restore(backup, dir, bolt.Options{Migrations: directory.Migrations()}, func(t store.Tx) (err error) {
		r, err = directory.Restored(t, now, by)
		return err
	})
	return r, err
}
