package bolt

import (
	"fmt"
	"hash/crc32"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// guarded runs the first read of a file. bbolt trusts the pages of its file: if the file was truncated or overwritten, bbolt
// panics or reads beyond the mapped file.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if trouble := recover(); trouble != nil {
			err = fmt.Errorf("its pages make no sense: %v", trouble)
		}
	}()
	return read()
}

// sound reads everything in the store, so that damage is found before anyone relies on it.
func sound(b *bbolt.DB) error {
	h := crc32.NewIEEE() // the sum is unused; computing it touches every byte
	return b.View(func(t *bbolt.Tx) error {
		return t.ForEach(func(_ []byte, bucket *bbolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error {
				h.Write(k)
				h.Write(v)
				return nil
			})
		})
	})
}
