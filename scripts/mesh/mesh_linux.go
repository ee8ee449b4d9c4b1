package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// Port is the port that the coordinator listens on.
const Port = "443"

// Mesh is a world with a coordinator in it.
type Mesh struct {
	World *lab.World
	LAN   *lab.LAN
	VM    *lab.Host // the coordinator's host
	Serve *lab.Process
	// Said, if set, is called with everything that a command has printed when it ends.
	Said func(host string, args []string, r Result)

	bin string
	dir string // for the coordinator's data and files that people write
}

// New creates a world with a host for the coordinator; bin is the directory of the two programs.
func New(bin string) (*Mesh, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	for _, program := range []string{"redoubt", "redoubt-coordinator"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			return nil, fmt.Errorf("%w: make build builds it", err)
		}
	}
	w, err := lab.New()
	if err != nil {
		return nil, err
	}
	m := &Mesh{World: w, bin: bin, dir: filepath.Join(w.Dir, "files")}
	if err := m.begin(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return m, nil
}

func (m *Mesh) begin() (err error) {
	for _, dir := range []string{m.dir, m.empty()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if m.LAN, err = m.World.LAN("office"); err != nil {
		return err
	}
	m.VM, err = m.World.AddHost("vm", m.LAN)
	return err
}

// Close ends everything.
func (m *Mesh) Close() error { return m.World.Close() }

func (m *Mesh) empty() string { return filepath.Join(m.World.Dir, "nothing") }

// Data returns the coordinator's directory.
func (m *Mesh) Data() string { return filepath.Join(m.dir, "coordinator") }

// URL returns the coordinator's URL.
func (m *Mesh) URL() string { return "https://" + netip.AddrPortFrom(m.VM.V4(), 443).String() }

// StartCoordinator starts the coordinator and waits until it answers.
func (m *Mesh) StartCoordinator(ctx context.Context, flags ...string) error {
	p, err := m.VM.Start(lab.Command{
		Name: "coordinator", Path: m.Program("redoubt-coordinator"),
		Args: append([]string{"serve", "--data", m.Data(), "--listen", ":" + Port, "--url", m.URL()}, flags...),
	})
	if err != nil {
		return err
	}
	m.Serve = p
	return m.await(ctx, p, func() error {
		_, err := m.Admin(ctx, "token", "list")
		return err
	})
}

// await asks until a program that was started answers.
func (m *Mesh) await(ctx context.Context, p *lab.Process, ask func() error) error {
	for begun := time.Now(); ; {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended: %w\n%s", p.Name, p.Wait(ctx), p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w\n%s", p.Name, err, p.Output())
		case <-time.After(10*time.Millisecond + time.Since(begun)/10):
		}
	}
}

// Program returns the path of one of the two programs.
func (m *Mesh) Program(name string) string { return filepath.Join(m.bin, name) }

// Result is the outcome of a command.
type Result struct {
	Out, Err string // standard output and standard error
	Code     int    // exit code; -1 if it had none
}

// exec runs one of the two programs on a host. A non-zero exit code is also an error.
func (m *Mesh) exec(ctx context.Context, h *lab.Host, c lab.Command) (r Result, err error) {
	var problems strings.Builder
	c.Path, c.Stderr = m.Program(c.Path), &problems
	r.Out, err = h.Run(ctx, c)
	r.Err = problems.String()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code = -1
	}
	if m.Said != nil {
		m.Said(h.Name, c.Args, r)
	}
	return r, err
}

// Admin runs a command of the coordinator and returns what it printed.
func (m *Mesh) Admin(ctx context.Context, args ...string) (string, error) {
	r, err := m.AdminExec(ctx, args...)
	return r.Out, err
}

// AdminExec runs a command of the coordinator.
func (m *Mesh) AdminExec(ctx context.Context, args ...string) (Result, error) {
	return m.exec(ctx, m.VM, lab.Command{
		Path: "redoubt-coordinator", Args: args,
		Env: []string{"REDOUBT_ADMIN_SOCKET=" + filepath.Join(m.Data(), "admin.sock")},
	})
}

// Token creates a join code.
func (m *Mesh) Token(ctx context.Context, flags ...string) (string, error) {
	out, err := m.Admin(ctx, append([]string{"token", "create"}, flags...)...)
	return strings.TrimSpace(out), err
}

// Apply puts a policy in force.
func (m *Mesh) Apply(ctx context.Context, policy string, flags ...string) (string, error) {
	file := filepath.Join(m.dir, "policy.hujson")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		return "", err
	}
	return m.Admin(ctx, append([]string{"policy", "apply", file}, flags...)...)
}

// Node is a host with an agent.
type Node struct {
	Name  string
	Host  *lab.Host
	Agent *lab.Process
	mesh  *Mesh
}

// AddNode creates a host and starts its agent.
func (m *Mesh) AddNode(ctx context.Context, name string, flags ...string) (*Node, error) {
	h, err := m.World.AddHost(name, m.LAN)
	if err != nil {
		return nil, err
	}
	n := m.NodeOn(h)
	return n, n.StartAgent(ctx, flags...)
}

// NodeOn returns the node on a host, whose agent is yet to be started.
func (m *Mesh) NodeOn(h *lab.Host) *Node {
	m.hideLists(h)
	return &Node{Name: h.Name, Host: h, mesh: m}
}

// hideLists keeps every agent of a mesh from asking this machine's package manager for missing updates: with apt that takes
// seconds.
func (m *Mesh) hideLists(h *lab.Host) {
	const lists = "/var/lib/apt/lists"
	if _, err := os.Stat(lists); err != nil || h.Mounts["/var/lib"] != "" {
		return // it does not exist or is already hidden
	}
	h.Mounts = maps.Clone(h.Mounts)
	if h.Mounts == nil {
		h.Mounts = map[string]string{}
	}
	h.Mounts[lists] = m.empty()
}

// State returns the agent's directory.
func (n *Node) State() string { return filepath.Join(n.mesh.dir, n.Name) }

// StartAgent starts the agent and waits until it answers.
func (n *Node) StartAgent(ctx context.Context, flags ...string) error {
	p, err := n.Launch(lab.Command{Args: flags})
	if err != nil {
		return err
	}
	return n.mesh.await(ctx, p, func() error {
		_, err := n.Status(ctx)
		return err
	})
}

// Launch starts the agent with additional flags and environment variables, and does not wait. The TPM of the real machine is
// left alone; flags can name another one.
func (n *Node) Launch(c lab.Command) (*lab.Process, error) {
	c.Name, c.Path = "agent", n.mesh.Program("redoubt")
	c.Args = append([]string{"agent", "--state", n.State(), "--tpm", "off"}, c.Args...)
	p, err := n.Host.Start(c)
	n.Agent = p
	return p, err
}

// Run runs a redoubt command on the node and returns what it printed.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	r, err := n.Exec(ctx, lab.Command{Args: args})
	return r.Out, err
}

// Exec runs a redoubt command on the node, with the other fields of c.
func (n *Node) Exec(ctx context.Context, c lab.Command) (Result, error) {
	c.Path = "redoubt"
	return n.mesh.exec(ctx, n.Host, c)
}

// Up joins the mesh.
func (n *Node) Up(ctx context.Context, code string, flags ...string) (string, error) {
	return n.Run(ctx, append([]string{"up", code, "--hostname", n.Name}, flags...)...)
}

// Status is the stable part of what `redoubt status --json` prints.
type Status struct {
	State string
	Node  struct {
		ID                 string
		Name               string
		Addresses          []netip.Addr
		User               string
		Tags               []string
		CertificateExpires time.Time
	}
	Coordinator struct {
		Connected bool
		LastHeard time.Time
	}
	PolicyVersion string
	Peers         []Peer
	Problems      []string
	Pending       struct{ Code, Name string } // set while it waits to become a node
	Routing       struct {
		Offered []struct {
			Prefix netip.Prefix
			Served bool
		}
		Routes []struct {
			Prefix netip.Prefix
			Peer   string
			Used   bool
		}
		ExitNode *struct {
			Wanted, Peer string
			IPv4, IPv6   bool
		}
	}
	ListenPort uint16
	WireGuard  struct {
		Keys []struct{ PublicKey string }
	}
}

// Peer is a peer in a Status.
type Peer struct {
	ID, Name         string
	Addresses        []netip.Addr
	User             string
	Tags             []string
	Path, Endpoint   string
	PathMTU          int
	Transport        string
	WhyNotDirect     string
	LastHandshake    time.Time
	RxBytes, TxBytes uint64
}

// V4 returns the node's IPv4 overlay address.
func (s Status) V4() netip.Addr { return s.pick(netip.Addr.Is4) }

// V6 returns the node's IPv6 overlay address.
func (s Status) V6() netip.Addr { return s.pick(netip.Addr.Is6) }

func (s Status) pick(want func(netip.Addr) bool) netip.Addr {
	for _, a := range s.Node.Addresses {
		if want(a) {
			return a
		}
	}
	return netip.Addr{}
}

// Status returns the agent's status.
func (n *Node) Status(ctx context.Context) (s Status, err error) {
	out, err := n.Run(ctx, "status", "--json")
	if out != "" {
		// A node that is not up has a non-zero exit code, but still prints its status.
		if e := json.Unmarshal([]byte(out), &s); e == nil {
			return s, nil
		}
	}
	return s, err
}
