package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	dirs.Lock()
	defer dirs.Unlock()
	var err error
	for _, dir := range dirs.all {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err == nil && code == 0 {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// dirs are the directories with programs, removed at the end.
var dirs struct {
	sync.Mutex
	all []string
}

// built returns the directory with the two programs, which every user of this machine may read. They are built once, with the
// flags of `go build ./...`, so that most of it is already in the build cache.
var built = sync.OnceValues(func() (string, error) { return build() })

// brief is the same, but the coordinator accepts certificate lifetimes of seconds.
var brief = sync.OnceValues(func() (string, error) { return build("-tags=shortlives") })

func build(flags ...string) (string, error) {
	dir, err := os.MkdirTemp("", "redoubt-e2e-")
	if err != nil {
		return "", err
	}
	dirs.Lock()
	dirs.all = append(dirs.all, dir)
	dirs.Unlock()
	build := exec.Command("go", slices.Concat([]string{"build"}, flags, []string{"-o", dir + "/", "./cmd/redoubt", "./cmd/redoubt-coordinator"})...)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, os.Chmod(dir, 0o755)
}
