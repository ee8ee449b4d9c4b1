package agenttest

import (
	"fmt"
	"os"
	"testing"
)

// FuzzMesh reads bytes as a world and what happens in it (see program), runs that, and sees after each event that the promises
// hold which can be watched there:
//
//   - programs are given nothing that the policy and the trust in both nodes do not allow, by a version that either may still hold;
//   - a connection does not outlive its permission;
//   - nothing is given to programs twice, and nothing that says it is from somebody else;
//   - what programs say is on the wire in no datagram and no stream;
//   - whoever may reach another does, within a time after the last disturbance, if the world lets them;
//   - where nothing disturbs packets none is lost, whatever happens to keys, clocks, the policy and the coordinator, and
//     whatever an attacker on the way puts there;
//   - when everything has ended no goroutine, socket or stream is left.
func FuzzMesh(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		p := parseProgram(data)
		defer func() {
			if r := recover(); r != nil {
				fmt.Fprintf(os.Stderr, "the program:\n%s", p)
				panic(r)
			}
		}()
		runTrial(t, p)
	})
}
