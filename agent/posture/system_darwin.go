package posture

import (
	"context"
	"sync"
	"time"
)

const root = "/"

func programDirs() []string {
	return []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/libexec/ApplicationFirewall"}
}

func environment() []string { return []string{"PATH=/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/var/empty"} }

// OSVersion returns the version of macOS, such as 15.1. It does not change while the system runs.
func OSVersion() string { return osVersion() }

var osVersion = sync.OnceValue(func() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	b, err := run(ctx, "sw_vers", "-productVersion")
	if err != nil {
		return ""
	}
	return clean(string(b))
})

// Local returns the source of facts about this machine.
func Local(Config) Source {
	return source(System(), []reader{
		{Plan{Every: often}, applicationFirewall},
		{Plan{Every: seldom, Dear: true}, fileVault},
	}, nil)
}
