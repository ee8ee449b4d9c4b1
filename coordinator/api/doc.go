// Package api is the coordinator's interface for administrators: Connect on a unix socket that belongs to the user that the
// coordinator runs as.
//
//	redoubt-coordinator token create ──► DIR/admin.sock (0600) ──► who calls? root or the coordinator's own user
//	                                                                 │  Host and Origin: no page of a browser gets here
//	                                                                 ▼
//	                                        Admin ──► directory, hub, policy, issuer, store
//
// Whatever changes something says in the audit log who asked for it.
package api
