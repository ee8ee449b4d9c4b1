//go:build race

package main

// usual is the default number of nodes in TestFleet with the race detector, which makes handshakes many times as expensive.
const usual = 150
