// Package readme is a test: it does what README.md tells a person to do, and sees that README.md shows what that person
// will see.
//
//	README.md ── parse ──► steps ──► a testscript ──► on HOST 'COMMAND'     shows 'OUTPUT'
//	                                                       │
//	          namespaces of scripts/lab: vm, laptop, server, new-vm, each with an /etc, a /usr/local/bin, a /var/lib
//	          and a home of its own; sudo, systemctl, journalctl, git, scp and ssh are stand-ins (see standin_test.go)
//
// How README.md is read:
//
//	```sh                 commands for any machine: done on every host of the set-up
//	```console            commands with the host's name before them, and what they print: `laptop$ redoubt status`
//	```jsonc NAME         a file that the person writes, in the home of the host that is spoken of next
//	```text               neither commands nor files
//
// Any other fenced block, a command for a host that does not exist, or a program that is neither on the hosts nor a
// stand-in fails the test. `make demo`, `make test` and `make bench` would run this test again: that they are targets of
// the Makefile is all that is checked here.
//
// What is shown is compared line by line and loosely (see pattern_test.go): numbers, times and sizes are any; an address,
// a node's id or a join code in README.md stands for a real one, for the same one wherever it occurs. A command whose output begins
// with an error has to fail, every other has to succeed.
package readme
