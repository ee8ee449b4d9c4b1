package store

// Tx is the view that migrations and restores have of a store while nobody else uses it: one transaction, all or nothing.
type Tx interface {
	Get(key string) ([]byte, bool)
	// List returns the entries under a prefix, sorted by key.
	List(prefix string) ([]Entry, error)
	Put(key string, value []byte) error
	Delete(key string) error
}

// Edit changes a store in one transaction before it is opened.
type Edit func(Tx) error
