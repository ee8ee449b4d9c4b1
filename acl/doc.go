// Package acl reads the policy of a mesh: one HuJSON file (JSON with comments and trailing commas) that specifies who may
// reach what. It does no I/O.
//
//	policy.hujson ── hujson ──► syntax tree ── this package, by hand ──► *Policy, Diagnostics
//	                                                                        │
//	                                                            acl/compile: rules for one node
//
// The file is read strictly: an unknown key, a wrong type, a duplicate key, an undefined group, host or tag, and a bad port are
// errors. All errors of the file are reported with line, column and path ("acls[2].dst[0]"), not only the first. A file with
// an error yields no Policy at all.
//
// What belongs to the language but is not enforced by this version (see keys.go) is refused, never ignored: a restriction
// that is skipped would be a hole.
//
// The parts of a file and where they are read:
//
//	groups, hosts, tagOwners   define.go     names that selectors may use
//	ipsets                     ipset.go      named sets of addresses; their arithmetic is in ranges.go
//	postures, srcPosture       posture.go    conditions on what is known about a node and its user
//	acls, grants               rules.go      both become Rules: sources, destinations, services
//	deny, enforcement          guard.go      Rules as well, with another action
//	autoApprovers, via         route.go      who may route what, and through which routers grants apply
//	app, nodeAttrs             attrs.go      capabilities and attributes for applications and agents
//	ssh, sshTests              ssh.go        who may log in where, as whom
//	session, auth, outage,     terms.go      how long logins, certificates and nodes without a coordinator last
//	node
//	tests                      tests.go      what must and must not be possible
//	"group:eng", "10.0.0.0/8"  selector.go   who or what
//	"tcp:443", "80,443"        service.go    protocols and ports
package acl
