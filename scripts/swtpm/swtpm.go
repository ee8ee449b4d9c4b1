// Package swtpm runs software TPMs, each with an endorsement key certificate as a chip's maker would issue it. It uses
// Debian's packages swtpm and swtpm-tools.
//
//	Maker ──swtpm_setup──► New(dir) ──swtpm socket──► TPM.Socket: the bare stream of commands, one client at a time
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Missing returns an error that names a required program that is not installed, or nil.
func Missing() error {
	for _, p := range []string{"swtpm", "swtpm_setup", "swtpm_localca"} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not installed (apt-get install swtpm swtpm-tools)", p)
		}
	}
	return nil
}

// Maker is a CA that signs endorsement key certificates.
type Maker struct{ dir string }

// NewMaker creates a CA in a directory that is empty or does not exist.
func NewMaker(dir string) (*Maker, error) {
	if err := os.MkdirAll(filepath.Join(dir, "ca"), 0o700); err != nil {
		return nil, err
	}
	m := &Maker{dir}
	ca := filepath.Join(dir, "ca")
	files := map[string]string{
		m.path("localca.conf"):    fmt.Sprintf("statedir = %s\nsigningkey = %s/signkey.pem\nissuercert = %s/issuercert.pem\ncertserial = %s/certserial\n", ca, ca, ca, ca),
		m.path("localca.options"): "--platform-manufacturer Redoubt\n--platform-version 1\n--platform-model test\n",
		m.path("setup.conf"): fmt.Sprintf("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			m.path("localca.conf"), m.path("localca.options")),
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Maker) path(name string) string { return filepath.Join(m.dir, name) }

// Roots copies the certificates of the CA into a directory. They exist once the first TPM has been made.
func (m *Maker) Roots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(m.dir, "ca", name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// TPM is a TPM whose program may be running. It keeps its storage in a directory.
type TPM struct {
	Socket string
	dir    string
	cmd    *exec.Cmd
	ended  chan struct{}
}

// New creates a TPM in a directory that does not exist, and starts it. A nil maker means that it gets no certificate.
func New(ctx context.Context, dir string, m *Maker) (*TPM, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	args := []string{"--tpm2", "--tpmstate", dir, "--overwrite"}
	if m != nil {
		args = append(args, "--create-ek-cert", "--config", m.path("setup.conf"), "--vmid", filepath.Base(dir))
	}
	if out, err := exec.CommandContext(ctx, "swtpm_setup", args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	t := &TPM{dir: dir, Socket: filepath.Join(dir, "sock")}
	return t, t.Start(ctx)
}

// Copy creates a second TPM with the storage of this one, which must not be running, and starts it: what a machine has that
// was cloned with its TPM, as virtual ones can be.
func (t *TPM) Copy(ctx context.Context, dir string) (*TPM, error) {
	if err := os.CopyFS(dir, os.DirFS(t.dir)); err != nil {
		return nil, err
	}
	c := &TPM{dir: dir, Socket: filepath.Join(dir, "sock")}
	return c, c.Start(ctx)
}

// Start starts the program, which resets the TPM: loaded objects and PCRs are lost, as after a reboot.
func (t *TPM) Start(ctx context.Context) error {
	t.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.dir, "--server", "type=unixio,path="+t.Socket, //nolint:noctx // it outlives ctx
		"--ctrl", "type=unixio,path="+t.Socket+".ctrl", "--flags", "not-need-init,startup-clear")
	var said strings.Builder
	t.cmd.Stdout, t.cmd.Stderr = &said, &said
	if err := t.cmd.Start(); err != nil {
		return err
	}
	t.ended = make(chan struct{})
	go func() {
		defer close(t.ended)
		_ = t.cmd.Wait() // Close makes it end
	}()
	for ctx.Err() == nil {
		if t.answers(t.Socket+".ctrl") && t.answers(t.Socket) {
			return nil
		}
		select {
		case <-t.ended:
			return fmt.Errorf("swtpm ended: %s", said.String())
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("swtpm does not answer: %w", ctx.Err()), t.Close())
}

func (t *TPM) answers(socket string) bool {
	c, err := net.Dial("unix", socket) //nolint:noctx // it answers at once, or not at all
	return err == nil && c.Close() == nil
}

// Close kills the program and waits.
func (t *TPM) Close() error {
	if t.ended == nil {
		return nil
	}
	select {
	case <-t.ended:
	default:
		if err := t.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-t.ended
	}
	for _, path := range []string{t.Socket, t.Socket + ".ctrl"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
