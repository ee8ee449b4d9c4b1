//go:build !(linux || darwin || freebsd)

package bolt

import (
	"fmt"
	"os"
	"runtime"
)

func tryLock(*os.File) error {
	return fmt.Errorf("a coordinator's data directory cannot be locked on %s; run it on Linux, macOS or FreeBSD", runtime.GOOS)
}

func unlock(*os.File) error { return nil }
