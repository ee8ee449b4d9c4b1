// Package relayed tests a relay on a machine of its own with everything that is real but the machines: a coordinator, a relay
// that joins it, and the clients of two nodes, over loopback in one process.
package relayed
