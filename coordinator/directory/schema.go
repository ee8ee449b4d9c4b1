package directory

import "github.com/redoubt-mesh/redoubt/coordinator/store"

// Migrations lead from the first schema of the store to the one that this program writes, the oldest first. They are only ever
// appended to.
func Migrations() []store.Edit { return []store.Edit{traitsAndRoles, attestation} }

// traitsAndRoles is schema 2: traits and roles have records, and policies may have comments. Nothing that is there changes. The
// number keeps older programs away, which would enforce a policy without knowing whom it is about.
func traitsAndRoles(store.Tx) error { return nil }

// attestation is schema 3: nodes have what their machine proved, and tokens the node that they replace. Nothing that is there
// changes. The number keeps older programs away, which would let a known machine join twice.
func attestation(store.Tx) error { return nil }
