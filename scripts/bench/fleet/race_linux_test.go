//go:build race

package main

// usual is how many nodes TestFleet has with the race detector, which makes handshakes many times as dear.
const usual = 150
