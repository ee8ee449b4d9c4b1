// Package bolt is the store in one file: the engine for a mesh with one coordinator. It uses etcd's bbolt, a copy-on-write
// tree whose transactions are on disk (fdatasync, twice) when they return.
//
//	DIR/lock              flock of the process that has the directory open, and its description
//	DIR/redoubt.db        bucket meta:    schema, revision
//	                      bucket entries: key -> created (8 bytes) | modified (8 bytes) | value
//	DIR/redoubt.db.schema-N   copy from before the schema was changed from N
//
// A backup is a copy of the file as of one transaction, followed by a mark and the SHA-256 of the pages, so that a truncated
// or modified file is detected before anything is changed.
package bolt
