package agenttest

import (
	"fmt"
	"os"
	"testing"
)

// FuzzMesh parses bytes as a world and the events in it (see program), runs that, and checks after each event those promises
// that can be observed there:
//
//   - programs receive only what the policy and the trust in both nodes allow, by a version that either may still hold;
//   - a connection does not outlive its permission;
//   - programs receive nothing twice, and nothing with a forged source;
//   - what programs send appears in no datagram and no stream on the wire;
//   - a node that may reach another does, within a time after the last disturbance, if the world lets it;
//   - where nothing disturbs packets none is lost, whatever happens to keys, clocks, the policy and the coordinator, and
//     whatever an attacker on the path injects;
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
