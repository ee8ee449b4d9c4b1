//go:build !race

package main

// usual is the default number of nodes in TestFleet.
const usual = 1000
