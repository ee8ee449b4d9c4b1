// Package agent is one node of a mesh: the composition root of everything below this folder.
//
//	redoubt up, status ... ──► localapi ──┐
//	coordinator ◄──► control.Client ──────┤ events
//	timer, network changes, engine ───────┤
//	                                      ▼
//	                             ┌─────────────────┐
//	                             │ Agent.loop      │  one goroutine: owns the machine, the state directory,
//	                             │  machine.Step   │  the data path's life and the control client
//	                             └────────┬────────┘
//	                                      │ effects, in their order
//	       ┌──────────────┬───────────────┼───────────────┬──────────────┐
//	       ▼              ▼               ▼               ▼              ▼
//	  state.Dir      filter.Filter    wg.Engine      osnet.Network   control.Client
//	                      ▲               ▲
//	                      └─ tun.Filtered ┘   packets: they never meet the loop
//
// What the agent touches outside itself stands in Config.Edges, and has a fake beside its real implementation: so whole
// meshes run in one process and in virtual time, see agenttest.
//
// Nothing passes before the guard of osnet is up and the filter has a program; a program is installed only when everything
// it takes was verified. On the way down the filter closes first.
package agent
