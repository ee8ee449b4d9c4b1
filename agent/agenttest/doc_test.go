// Package agenttest runs whole meshes in one process and in virtual time: real agents and a real coordinator, with real TLS
// and real WireGuard, on an Internet in memory.
//
//	mesh ─┬─ Internet (netstack/sim): hosts, latency, cuts, resets
//	      ├─ center: a coordinator on a bbolt file; it can stop, start again, and die at any write
//	      └─ node: an agent on a state directory, with everything outside of it made of memory
//	           │    clock    virtual time, and the time since the machine started
//	           │    Dial     streams of the host's, through a tap that can cut them at any message
//	           │    Network  osnet.Fake
//	           │    NewBind  UDP of the host's
//	           │    OpenTUN ─► sim.TUN ─► sim.Stack: the machine's programs, which ping, and open and accept connections
//	           └─ Reaches, Ping, Echo ... what those programs see
//
// FuzzMesh reads bytes as a program: a world, with relays and NATs in it, and what happens there. A trial runs it, and a witness
// sees all that programs are given and all that is on the wire.
//
// Only tests live here: this is the one place that may import agent, coordinator and netstack/sim at once.
package agenttest
