package bolt

import (
	"fmt"
	"hash/crc32"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// guarded runs what reads a file for the first time. bbolt believes what the pages of its file say: over one that was cut
// short or overwritten it panics, or reads where there is no file.
func guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if trouble := recover(); trouble != nil {
			err = fmt.Errorf("its pages make no sense: %v", trouble)
		}
	}()
	return read()
}

// sound reads all that the store holds, so that damage is known before anybody relies on it.
func sound(b *bbolt.DB) error {
	h := crc32.NewIEEE() // Its value is nobody's business; it touches every byte.
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
