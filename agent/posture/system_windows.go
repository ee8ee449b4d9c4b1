package posture

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

const root = `C:\`

func programDirs() []string {
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		return nil
	}
	return []string{dir, filepath.Join(dir, "WindowsPowerShell", "v1.0")}
}

// environment is the service's own: PowerShell needs it to find its modules.
func environment() []string { return os.Environ() }

// OSVersion returns the version of Windows, such as 10.0.22631.
func OSVersion() string {
	v := windows.RtlGetVersion()
	return fmt.Sprintf("%d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
}

// Local returns the source of facts about this machine. PowerShell counts as expensive: it takes a second of CPU to start.
func Local(Config) Source {
	return source(System(), []reader{
		{Plan{Every: 5 * often, Dear: true}, defenderFirewall},
		{Plan{Every: seldom, Dear: true}, bitLocker},
	}, nil)
}
