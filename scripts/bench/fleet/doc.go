// Command fleet measures what many nodes cost a coordinator: the real program in its own process, and nodes that are the
// agent's real control client, in processes of their own, over loopback.
//
//	fleet ──unix socket──► redoubt-coordinator serve ◄──TLS, 127.0.0.1── worker (nodes 0, 2, 4 ...)
//	  └──stdin, stdout, one JSON value a line──► workers ◄──────────────── worker (nodes 1, 3, 5 ...)
//
// Nodes join as machines do, with a join code. They have no data path: a node acknowledges what it was sent at once. CPU time and
// memory are the coordinator's own, from /proc; times are of the clock that all processes of a machine share.
package main
