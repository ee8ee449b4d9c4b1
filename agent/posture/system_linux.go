package posture

import (
	"context"
	"slices"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
)

const root = "/"

func programDirs() []string { return []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} }

func environment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
}

// OSVersion returns the release of the kernel, such as 6.12.9-amd64: what policies call the version of Linux.
func OSVersion() string { return clean(System().text("proc/sys/kernel/osrelease")) }

// Local returns the source of facts about this machine.
func Local(c Config) Source { return source(System(), collectors(c), changes) }

func collectors(c Config) []reader {
	return []reader{
		{Plan{Every: seldom}, distribution},
		{Plan{Every: seldom}, kernel},
		{Plan{Every: often}, lockdown},
		{Plan{Every: seldom}, secureBoot},
		{Plan{Every: often, On: Firewall}, firewall(c.Interface)},
		{Plan{Every: often}, rebootRequired},
		{Plan{Every: often}, edr(append(slices.Clone(c.Guards), guards...))},
		{Plan{Every: seldom}, diskEncrypted},
		{Plan{Every: seldom}, screenLock},
		{Plan{Every: seldom, Dear: true}, sshRootLogin},
		{Plan{Every: seldom, Dear: true}, osquery},
		{Plan{Every: seldom, Dear: true}, agentHash("/proc/self/exe")},
		{Plan{Every: seldom, Dear: true}, updates(c.Memory)},
	}
}

// changes reports changes of the firewall.
func changes(ctx context.Context) (<-chan Trigger, error) {
	filters, err := osnet.WatchFilters(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan Trigger)
	go func() {
		defer close(out)
		for range filters {
			select {
			case out <- Firewall:
			case <-ctx.Done():
			}
		}
	}()
	return out, nil
}
