// Command fleet measures what many nodes cost a coordinator: the real program in its own process, and nodes that use the
// agent's real control client, in separate processes, over loopback.
//
//	fleet ──unix socket──► redoubt-coordinator serve ◄──TLS, 127.0.0.1── worker (nodes 0, 2, 4 ...)
//	  └──stdin, stdout, one JSON value per line──► workers ◄────────────── worker (nodes 1, 3, 5 ...)
//
// Nodes join with a join code, as machines do. They have no data path: a node acknowledges what it receives at once. CPU time
// and memory are the coordinator's alone, from /proc; times come from the clock that all processes of a machine share.
package main
