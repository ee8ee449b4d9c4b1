//go:build linux

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxLog bounds the output of a process that is kept in memory; the file has all of it.
const maxLog = 8 << 20

// Command is a program to run on a host.
type Command struct {
	// Name is the process's name, for its log and in errors; by default, the program's.
	Name string
	// Path is the program: a path, or a name to look up.
	Path  string
	Args  []string // without the program
	Env   []string // added to this program's
	Dir   string
	Stdin io.Reader
	// Stderr also gets what Run's program writes to standard error.
	Stderr io.Writer
	// UID is the user and group that it runs as, without privileges; 0 is root. Other users require that this program is root
	// outside of a user namespace.
	UID int
}

// Process is a program that runs, or ran, on a host.
type Process struct {
	Name string
	// Log is the file with everything that it has written.
	Log string

	host *Host
	cmd  *exec.Cmd
	file *os.File
	out  *output
	done chan struct{}
	err  error // from Wait, once done is closed
}

// starter is the thread that starts all processes. The kernel kills them when that thread ends, so they die with this
// program; other threads come and go.
type starter struct {
	work chan func()
	done chan struct{}
}

func newStarter() *starter {
	s := &starter{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	result := make(chan error)
	s.work <- func() { result <- cmd.Start() }
	return <-result
}

func (s *starter) close() {
	close(s.work)
	<-s.done
}

// command prepares a command that enters the host and becomes the program.
func (h *Host) command(c Command) (*exec.Cmd, error) {
	path, err := exec.LookPath(c.Path)
	if err != nil {
		return nil, fmt.Errorf("find the program %s: %w", c.Path, err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("find the program %s: %w", c.Path, err)
	}
	e := entry{
		Name: h.Name, Binds: map[string]string{"/run": h.RunDir}, Dir: c.Dir, UID: c.UID, Path: path, Args: append([]string{c.Path}, c.Args...),
	}
	// If /var/run is not a link to /run, it needs the same mount.
	if info, err := os.Lstat("/var/run"); err == nil && info.IsDir() {
		e.Binds["/var/run"] = h.RunDir
	}
	maps.Copy(e.Binds, h.Mounts)
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("say what to run: %w", err)
	}
	return &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{helperName, string(text)},
		Env:        append(os.Environ(), c.Env...),
		Stdin:      c.Stdin,
		ExtraFiles: []*os.File{h.ns.file},
		// Do not wait for descriptors that its children hold open. On a busy machine that can for a while be a child of this
		// program that is about to execute another one.
		WaitDelay:   15 * time.Second,
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	}, nil
}

// Start runs a program on the host. It is killed when the world is closed.
func (h *Host) Start(c Command) (*Process, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	cmd, err := h.command(c)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", c.Name, h.Name, err)
	}
	p := &Process{Name: c.Name, host: h, cmd: cmd, out: newOutput(), done: make(chan struct{})}
	p.Log = filepath.Join(h.world.Dir, h.Name, c.Name+".log")
	if p.file, err = os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("open the log of %s on %s: %w", c.Name, h.Name, err)
	}
	cmd.Stdout = io.MultiWriter(p.out, p.file)
	cmd.Stderr = cmd.Stdout
	if err := h.world.starter.start(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s on %s: %w", c.Name, h.Name, err), p.file.Close())
	}
	go func() {
		defer close(p.done)
		p.err = errors.Join(cmd.Wait(), p.file.Close())
		p.out.end()
	}()
	h.world.onClose(p.Kill)
	return p, nil
}

// Run runs a program on the host until it ends and returns its standard output. An error includes its standard error. If ctx
// ends, the program is killed.
func (h *Host) Run(ctx context.Context, c Command) (string, error) {
	cmd, err := h.command(c)
	if err != nil {
		return "", err
	}
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(&problems, c.Stderr)
	}
	if err := h.world.starter.start(cmd); err != nil {
		return "", fmt.Errorf("start %s on %s: %w", c.Path, h.Name, err)
	}
	unkill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	unkill()
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return out.String(), fmt.Errorf("%s %s on %s: %w\n%s", filepath.Base(c.Path), strings.Join(c.Args, " "), h.Name, err,
		strings.TrimSpace(problems.String()))
}

// PID returns the process id, as this program sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal. It does nothing if the process has ended.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s on %s: %w", p.Name, p.host.Name, err)
	}
	return nil
}

// Kill kills the process, like kill -9, and waits for it to end.
func (p *Process) Kill() error {
	err := p.Signal(unix.SIGKILL)
	<-p.done
	return err
}

// Stop asks the process to end, waits, and returns how it ended.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Wait waits for the process to end and returns how it ended.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s on %s: %w\n%s", p.Name, p.host.Name, ctx.Err(), p.out.tail())
	}
	if p.err != nil {
		return fmt.Errorf("%s on %s: %w\n%s", p.Name, p.host.Name, p.err, p.out.tail())
	}
	return nil
}

// Output returns what the process has written so far, to both outputs.
func (p *Process) Output() string { return p.out.String() }

// WaitFor waits until the process has written text.
func (p *Process) WaitFor(ctx context.Context, text string) error {
	for {
		all, more := p.out.next()
		if strings.Contains(all, text) {
			return nil
		}
		if more == nil {
			return fmt.Errorf("%s on %s ended before it wrote %q\n%s", p.Name, p.host.Name, text, p.out.tail())
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q from %s on %s: %w\n%s", text, p.Name, p.host.Name, ctx.Err(), p.out.tail())
		}
	}
}

// output collects what a process writes and wakes those waiting for it.
type output struct {
	mu   sync.Mutex
	text []byte
	more chan struct{} // closed at the next write; nil after the end
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if over := len(o.text) - maxLog; over > 0 {
		o.text = append(o.text[:0], o.text[over:]...)
	}
	if o.more != nil {
		close(o.more)
		o.more = make(chan struct{})
	}
	return len(b), nil
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = nil
}

// next returns everything written so far, and a channel that is closed when there is more; nil if there will be none.
func (o *output) next() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text), o.more
}

func (o *output) String() string {
	text, _ := o.next()
	return text
}

// tail returns the end of the output, for errors.
func (o *output) tail() string {
	lines := strings.Split(strings.TrimRight(o.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
