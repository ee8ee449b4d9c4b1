// Package agenttest runs whole meshes in one process and in virtual time: real agents and a real coordinator, with real TLS and
// real WireGuard, on an Internet in memory.
//
//	mesh ─┬─ Internet (netstack/sim): hosts, latency, cuts, resets
//	      ├─ center: a coordinator on a bbolt file; it can stop, start again, and die at any write
//	      └─ node: an agent with a state directory, and everything outside of it in memory
//	           │    clock    virtual time, and the time since the machine started
//	           │    Dial     the host's streams, through a tap that can cut them at any message
//	           │    Network  osnet.Fake
//	           │    NewBind  the host's UDP
//	           │    OpenTUN ─► sim.TUN ─► sim.Stack: the machine's programs, which ping, and open and accept connections
//	           └─ Reaches, Ping, Echo ... what those programs see
//
// FuzzMesh parses bytes as a program: a world, with relays and NATs in it, and the events there. A trial runs it, and a witness
// sees everything that programs receive and everything on the wire.
//
// Only tests live here: this is the only place that may import agent, coordinator and netstack/sim at once.
package agenttest
