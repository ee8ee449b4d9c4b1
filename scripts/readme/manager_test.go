//go:build linux

package readme

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// patience is how long a service may take to become ready.
const patience = time.Minute

// manager is the service manager of one host: it reads unit files as systemd does, as far as ours need it, and starts and
// stops programs.
type manager struct {
	host     *lab.Host
	root     string // contains the host's etc, var and so on
	listener net.Listener
	wait     sync.WaitGroup
	running  map[string]*lab.Process // used only by the serving goroutine
}

// newManager listens for the host's systemctl and journalctl.
func newManager(h *lab.Host, root string) (*manager, error) {
	l, err := net.Listen("unix", filepath.Join(h.RunDir, filepath.Base(managerSocket)))
	if err != nil {
		return nil, err
	}
	m := &manager{host: h, root: root, listener: l, running: map[string]*lab.Process{}}
	m.wait.Go(m.serve)
	return m, nil
}

func (m *manager) Close() error {
	err := m.listener.Close()
	m.wait.Wait()
	return err
}

// serve executes command lines one after the other.
func (m *manager) serve() {
	for {
		c, err := m.listener.Accept()
		if err != nil {
			return
		}
		var args []string
		if err := json.NewDecoder(c).Decode(&args); err == nil {
			out, err := m.do(args)
			r := reply{Out: out}
			if err != nil {
				r.Fail = err.Error()
			}
			_ = json.NewEncoder(c).Encode(r)
		}
		c.Close()
	}
}

func (m *manager) do(args []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if args[0] == "journalctl" {
		return m.journal(args[1:])
	}
	args = slices.DeleteFunc(slices.Clone(args[1:]), func(a string) bool { return a == "--now" || a == "--what=state" })
	if len(args) != 2 {
		return "", fmt.Errorf("this one knows only VERB [--now] [--what=state] UNIT: %q", args)
	}
	verb, unit := args[0], args[1]
	switch verb {
	case "enable", "start":
		return "", m.start(ctx, unit)
	case "disable", "stop":
		return "", m.stop(ctx, unit)
	case "clean":
		u, err := m.read(unit)
		return "", errors.Join(err, os.RemoveAll(u.state))
	case "restart":
		return "", errors.Join(m.stop(ctx, unit), m.start(ctx, unit))
	}
	return "", fmt.Errorf("this one does not know %q", verb)
}

// journal returns what a service has written.
func (m *manager) journal(args []string) (string, error) {
	i := slices.Index(args, "-u")
	if i < 0 || i+1 >= len(args) {
		return "", fmt.Errorf("want -u UNIT in %q", args)
	}
	p := m.running[args[i+1]]
	if p == nil {
		return "", fmt.Errorf("%s was not started", args[i+1])
	}
	b, err := os.ReadFile(p.Log)
	return string(b), err
}

// start runs a unit's program and waits until it reports that it is ready.
func (m *manager) start(ctx context.Context, unit string) error {
	u, err := m.read(unit)
	if err != nil {
		return err
	}
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.host.RunDir, unit+".notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer os.Remove(ready.LocalAddr().String())
	defer ready.Close()
	p, err := m.host.Start(lab.Command{
		Name: unit, Path: "sh", Args: []string{"-c", "exec " + u.exec}, Env: append(u.env, "NOTIFY_SOCKET=/run/"+unit+".notify"),
	})
	if err != nil {
		return err
	}
	m.running[unit] = p
	said := make(chan error, 1)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := ready.Read(b)
			if err != nil || strings.Contains(string(b[:n]), "READY=1") {
				said <- err
				return
			}
		}
	}()
	select {
	case err = <-said:
	case <-p.Done():
		err = errors.New("it has ended")
	case <-ctx.Done():
		err = errors.New("it does not say that it is ready")
	}
	if err != nil {
		return fmt.Errorf("%s: %w:\n%s", unit, err, p.Output())
	}
	return nil
}

func (m *manager) stop(ctx context.Context, unit string) error {
	p := m.running[unit]
	if p == nil {
		return fmt.Errorf("%s does not run", unit)
	}
	return p.Stop(ctx)
}

// unit is the content of a unit file.
type unit struct {
	exec  string
	env   []string
	state string // directory
}

// read reads a unit file and creates the directories that it requests.
func (m *manager) read(name string) (u unit, err error) {
	f, err := os.Open(filepath.Join(m.root, "etc/systemd/system", name+".service"))
	if err != nil {
		return u, fmt.Errorf("unit %s.service not found: %w", name, err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, value, _ := strings.Cut(sc.Text(), "=")
		switch key {
		case "ExecStart":
			u.exec = value
		case "EnvironmentFile":
			b, err := os.ReadFile(filepath.Join(m.root, strings.TrimPrefix(value, "-")))
			if err != nil && !strings.HasPrefix(value, "-") {
				return u, err
			}
			for l := range strings.Lines(string(b)) {
				if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
					u.env = append(u.env, l)
				}
			}
		case "StateDirectory":
			u.state = filepath.Join(m.root, "var/lib", value)
			err = os.MkdirAll(u.state, 0o700)
		case "RuntimeDirectory":
			for dir := range strings.FieldsSeq(value) {
				err = errors.Join(err, os.MkdirAll(filepath.Join(m.host.RunDir, dir), 0o755))
			}
		}
		if err != nil {
			return u, err
		}
	}
	if u.exec == "" {
		return u, fmt.Errorf("%s.service has no ExecStart", name)
	}
	return u, nil
}
