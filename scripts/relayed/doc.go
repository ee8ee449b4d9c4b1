// Package relayed tests a relay on a separate machine with everything real except the machines: a coordinator, a relay that
// joins it, and the clients of two nodes, over loopback in one process.
package relayed
