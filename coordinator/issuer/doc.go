// Package issuer holds the mesh's signing keys and issues certificates with them.
//
//	DIR/pki (0700, files 0600)
//	  root.key           key and certificate of the newest mesh root; may be moved offline
//	  root.next          the same for the root about to become the newest
//	  root.crt           the trusted roots: the newest, its cross-signature by the previous one, the previous one
//	  intermediate.key   key and certificate of this coordinator's intermediate
//	  intermediate.next  key of the next one, for which an offline root was asked to sign a certificate
//	  intermediates.crt  certificates of earlier intermediates that nodes may still need
//	  audit.key          key that signs checkpoints of the audit log; audit.pub is its public half
//	  (in memory)        the coordinator's own leaf and its key, created at each start
//
//	root ──► intermediate (30 d, replaced at half-life) ──┬──► node certificates (1 h)
//	                                                      └──► coordinator's leaf (1 d, replaced at half-life)
//
// The root's key is read from its file when an intermediate is due, and is not kept in memory. If the file is missing, the
// intermediate ages: from half of its lifetime Status warns, and once it expires nothing more is issued. Whatever the root has
// to sign can be carried to its key and back (Request, Install).
//
// A root is replaced while the mesh runs (Rotate): the old root cross-signs the new one, and both are trusted until the old one
// is retired. See package cert for how verification gets from one to the other.
//
// The first start creates root.key, from it root.crt, then the intermediate. Each file appears atomically; after a crash in
// between, the next start completes the rest. Keys that others on the machine can read are refused.
package issuer
