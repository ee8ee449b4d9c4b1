package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	if dir, err := built(); err == nil {
		err = os.RemoveAll(dir)
		if err == nil && code == 0 {
			err = goleak.Find()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// built is the directory with the two programs, which every user of this machine may read. They are built once, with the
// flags of `go build ./...`, so that the build's cache has most of it already.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "redoubt-e2e-")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/redoubt", "./cmd/redoubt-coordinator")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build the programs: %w\n%s", err, out), os.RemoveAll(dir))
	}
	return dir, os.Chmod(dir, 0o755)
})
