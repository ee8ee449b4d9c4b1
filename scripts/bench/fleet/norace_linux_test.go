//go:build !race

package main

// usual is how many nodes TestFleet has where nothing else is said.
const usual = 1000
