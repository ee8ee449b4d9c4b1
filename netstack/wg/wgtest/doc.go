// Package wgtest is the contract that every wg.Engine keeps: it tests two of them on a simulated Internet, in virtual time.
package wgtest
