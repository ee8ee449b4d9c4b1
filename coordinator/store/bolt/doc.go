// Package bolt is the store in one file: the engine for a mesh with one coordinator. It is etcd's own bbolt underneath,
// a copy-on-write tree whose transactions are on disk (fdatasync, twice) when they return.
//
//	DIR/lock              flock of whoever has the directory open, and who that is
//	DIR/redoubt.db        bucket meta:    schema, revision
//	                      bucket entries: key -> created (8 bytes) | modified (8 bytes) | value
//	DIR/redoubt.db.schema-N   copy from before the schema was changed from N
//
// A backup is a copy of the file as of one transaction, followed by a mark and the SHA-256 of all before, so that a file
// that was cut short or changed is known for what it is before anything is touched.
package bolt
