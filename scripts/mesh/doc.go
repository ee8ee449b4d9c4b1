// Package mesh runs the real programs in a world of network namespaces, as a person would: a coordinator on one host, an
// agent on each of the others, everything else through commands.
//
//	Mesh ─┬─ Coordinator host "vm": redoubt-coordinator serve, and its commands (Admin, Token, Apply)
//	      └─ Node hosts: redoubt agent, and redoubt up, status, ping ... (Run, Up, Status)
package mesh
