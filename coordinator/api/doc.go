// Package api is the coordinator's interface for administrators: Connect over a unix socket that belongs to the user that the
// coordinator runs as.
//
//	redoubt-coordinator token create ──► DIR/admin.sock (0600) ──► peer credentials: root or the coordinator's own user
//	                                                                 │  Host and Origin: keep out pages in a browser
//	                                                                 ▼
//	                                        Admin ──► directory, hub, policy, issuer, store
//
// Every change names the caller in the audit log.
package api
