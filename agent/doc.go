// Package agent runs one node of a mesh: it is the composition root of the packages below this directory.
//
//	redoubt up, status ... ──► localapi ──┐
//	coordinator ◄──► control.Client ──────┤ events
//	timer, network changes, engine ───────┤
//	                                      ▼
//	                             ┌─────────────────┐
//	                             │ Agent.loop      │  one goroutine: owns the machine, the state directory,
//	                             │  machine.Step   │  the data path's lifetime and the control client
//	                             └────────┬────────┘
//	                                      │ effects, in order
//	       ┌──────────────┬───────────────┼───────────────┬──────────────┐
//	       ▼              ▼               ▼               ▼              ▼
//	  state.Dir      filter.Filter    wg.Engine      osnet.Network   control.Client
//	                      ▲               ▲
//	                      └─ tun.Filtered ┘   packets: they never go through the loop
//
// Everything the agent touches outside itself is in Config.Edges and has a fake beside its real implementation, so whole
// meshes run in one process and in virtual time; see agenttest.
//
// Nothing passes before the osnet guard is up and the filter has a program; a program is installed only when everything it
// depends on has been verified. On the way down the filter closes first.
package agent
