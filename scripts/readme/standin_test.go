//go:build linux

package readme

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// managerSocket is where a host's service manager listens, as seen by the host's programs.
const managerSocket = "/run/readme-manager.sock"

// standins are the programs that replace real ones on the hosts. They are this test's binary under other names.
var standins = map[string]func(){
	"sudo":       func() { becomeProgram(os.Args[1:]) },
	"systemctl":  func() { askManager(os.Args) },
	"journalctl": func() { askManager(os.Args) },
	"git":        func() { fail(clone(os.Args[1:])) },
	"scp":        func() { fail(scp(os.Args[1:])) },
	"ssh":        func() { fail(ssh(os.Args[1:])) },
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// becomeProgram does what sudo does for root.
func becomeProgram(args []string) {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		fail(fmt.Errorf("sudo: this one knows no options: %q", args))
	}
	path, err := exec.LookPath(args[0])
	fail(err)
	fail(syscall.Exec(path, args, os.Environ()))
}

// reply is the service manager's reply to a command line.
type reply struct {
	Out  string
	Fail string
}

// askManager lets the test's service manager execute a command line.
func askManager(args []string) {
	c, err := net.Dial("unix", managerSocket)
	fail(err)
	defer c.Close()
	fail(json.NewEncoder(c).Encode(args))
	var r reply
	fail(json.NewDecoder(c).Decode(&r))
	fmt.Print(r.Out)
	if r.Fail != "" {
		fail(errors.New(args[0] + ": " + r.Fail))
	}
}

// Environment variables, set by the test, that tell the stand-ins where things are.
const (
	checkoutVar = "README_TEST_CHECKOUT" // this repository
	binVar      = "README_TEST_BIN"      // the programs, built
	homesVar    = "README_TEST_HOMES"    // each host's home
)

// clone makes a checkout with the contents of this one except bin.
func clone(args []string) error {
	if len(args) != 2 || args[0] != "clone" || !strings.HasSuffix(args[1], "/redoubt") {
		return fmt.Errorf("git: this one knows only clone URL: %q", args)
	}
	entries, err := os.ReadDir(os.Getenv(checkoutVar))
	if err != nil {
		return err
	}
	if err := os.Mkdir("redoubt", 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "bin" {
			continue
		}
		if err := os.Symlink(filepath.Join(os.Getenv(checkoutVar), e.Name()), filepath.Join("redoubt", e.Name())); err != nil {
			return err
		}
	}
	return os.Symlink(os.Getenv(binVar), "redoubt/bin")
}

// scp copies files to another host's home.
func scp(args []string) error {
	n := len(args) - 1
	if n < 1 {
		return fmt.Errorf("scp: want FILE... HOST: and not %q", args)
	}
	host, dir, ok := strings.Cut(args[n], ":")
	if !ok {
		return fmt.Errorf("scp: %q is no HOST:", args[n])
	}
	for _, name := range args[:n] {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		to := filepath.Join(os.Getenv(homesVar), host, dir, filepath.Base(name))
		if err := os.WriteFile(to, b, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// ssh reads the first line of a server, and otherwise prints the error of the real ssh.
func ssh(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("ssh: this one knows only HOST: %q", args)
	}
	_, host, ok := strings.Cut(args[0], "@")
	if !ok {
		host = args[0]
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, "22"), 30*time.Second)
	if err != nil {
		text := err.Error()
		var no syscall.Errno
		if errors.As(err, &no) {
			text = strings.ToUpper(no.Error()[:1]) + no.Error()[1:]
		}
		return fmt.Errorf("ssh: connect to host %s port 22: %s", host, text)
	}
	defer c.Close()
	_, err = io.CopyN(os.Stdout, c, 1)
	return err
}
