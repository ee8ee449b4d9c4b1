// Package issuer holds the keys that sign for the mesh and says with them who is who.
//
//	DIR/pki (0700, files 0600)
//	  root.key           key and certificate of the newest mesh root; may be taken away and kept offline
//	  root.next          the same of one that is about to be the newest
//	  root.crt           the roots that nodes trust: the newest, what the one before says of it, the one before
//	  intermediate.key   key and certificate of this coordinator's intermediate
//	  intermediate.next  key of the next one, for which an offline root was asked for a certificate
//	  intermediates.crt  certificates of the intermediates before it that nodes may still need
//	  audit.key          key that signs checkpoints of the audit log; audit.pub is its public half
//	  (in memory)        the coordinator's own leaf and its key, made at each start
//
//	root ──► intermediate (30 d, replaced at half-life) ──┬──► node certificates (1 h)
//	                                                      └──► coordinator's leaf (1 d, replaced at half-life)
//
// The root's key is read from its file when an intermediate is due, and not held otherwise. Where it is not there the
// intermediate grows old: from half of its life on Status warns, and at its end nothing more is issued. What the root has to
// sign can be carried to where its key is, and back (Request, Install).
//
// A root is replaced while the mesh runs (Rotate): the old one vouches for the new one, and both are trusted until the old one
// is retired. See package cert for how one leads to the other.
//
// The first start makes root.key, then root.crt from it, then the intermediate. Each file appears whole; a crash in
// between leaves a beginning that the next start completes. Keys that others on the machine can read are refused.
package issuer
