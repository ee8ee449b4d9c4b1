// Package readme is a test: it does what README.md tells a person to do, and checks that README.md shows what that person
// will see.
//
//	README.md ── parse ──► steps ──► a testscript ──► on HOST 'COMMAND'     shows 'OUTPUT'
//	                                                       │
//	          namespaces of scripts/lab: vm, laptop, server, new-vm, each with its own /etc, /usr/local/bin, /var/lib
//	          and home; sudo, systemctl, journalctl, git, scp and ssh are stand-ins (see standin_test.go)
//
// How README.md is read:
//
//	```sh                 commands for any machine: run on every host of the set-up
//	```console            commands after a prompt with the host's name, and their output: `laptop$ redoubt status`
//	```jsonc NAME         a file that the person writes, in the home of the next host mentioned
//	```text               neither commands nor files
//
// Any other fenced block, a command for a host that does not exist, or a program that is neither on the hosts nor a stand-in
// fails the test. `make demo`, `make test` and `make bench` would run this test again: for these it only checks that they are
// targets of the Makefile.
//
// Output is compared line by line and loosely (see pattern_test.go): numbers, times and sizes match any; an address, a node's
// id or a join code in README.md stands for a real one, the same one wherever it occurs. A command whose output begins with
// an error must fail, every other must succeed.
package readme
