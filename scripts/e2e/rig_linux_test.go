package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// patience is the timeout for what happens at once when nothing is wrong. It is long, because the machine may be busy.
const patience = time.Minute

// open is the policy under which everyone reaches everyone.
const open = `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`

// rig is a mesh in a test.
type rig struct {
	testing.TB
	*mesh.Mesh
	ctx context.Context

	mu        sync.Mutex
	said      []saying
	codes     []string
	former    []secret       // keys that are no longer in their files
	processes []*lab.Process // other than those of the coordinator and of members
	members   []*member
}

// saying is something that a program has printed.
type saying struct{ who, text string }

// newRig returns a mesh with a running coordinator.
func newRig(t testing.TB, flags ...string) *rig {
	t.Helper()
	r := emptyRig(t)
	r.startCoordinator(flags...)
	return r
}

// briefRig returns a mesh whose certificates last only seconds.
func briefRig(t testing.TB, lifetime time.Duration) *rig {
	t.Helper()
	r := rigOf(t, brief)
	r.startCoordinator("--cert-lifetime=" + lifetime.String())
	return r
}

// emptyRig returns a world with a host for the coordinator, which is not running yet.
func emptyRig(t testing.TB) *rig {
	t.Helper()
	return rigOf(t, built)
}

func rigOf(t testing.TB, programs func() (string, error)) *rig {
	t.Helper()
	labtest.Need(t)
	labtest.TUN(t)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(bin)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{TB: t, Mesh: m}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	m.Said = r.note
	t.Cleanup(r.finish)
	return r
}

// note records what a command has printed. A join code may be printed once, for whoever requested it.
func (r *rig) note(host string, args []string, result mesh.Result) {
	who := host + ": " + strings.Join(args, " ")
	if strings.HasPrefix(who, "vm: token create") {
		result.Out = ""
	}
	if len(args) > 1 && args[0] == "up" {
		who = host + ": up"
	}
	r.hear(who, result.Out+result.Err)
}

func (r *rig) hear(who, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, saying{who, text})
}

// finish stops all programs as a system does on shutdown, and checks what they have printed.
func (r *rig) finish() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.readBook(ctx)
	var wg sync.WaitGroup
	stop := func(p *lab.Process) {
		if p == nil {
			return
		}
		select {
		case <-p.Done():
			return
		default:
		}
		wg.Go(func() {
			if err := p.Stop(ctx); err != nil {
				r.Errorf("stopped, and it did not end well: %v", err)
			}
		})
	}
	for _, m := range r.members {
		stop(m.Agent)
	}
	wg.Wait()
	stop(r.Serve)
	for _, p := range r.processes {
		stop(p)
	}
	wg.Wait()
	r.lookForSecrets()
	if r.Failed() {
		r.logs()
	}
}

// logs shows what the programs have logged, in case the failure does not explain itself.
func (r *rig) logs() {
	show := func(p *lab.Process, host string) {
		if p == nil {
			return
		}
		text := p.Output()
		if over := len(text) - 3000; over > 0 {
			text = "...\n" + text[over:]
		}
		r.Logf("--- %s on %s\n%s", p.Name, host, text)
	}
	show(r.Serve, "vm")
	for _, m := range r.members {
		show(m.Agent, m.Name)
	}
}

func (r *rig) startCoordinator(flags ...string) {
	r.Helper()
	if err := r.StartCoordinator(r.ctx, flags...); err != nil {
		r.Fatal(err)
	}
}

// admin runs a command of the coordinator that must succeed.
func (r *rig) admin(args ...string) string {
	r.Helper()
	out, err := r.Admin(r.ctx, args...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// adminFails runs a command that must fail with a code, and returns its standard error.
func (r *rig) adminFails(code int, args ...string) string {
	r.Helper()
	res, _ := r.AdminExec(r.ctx, args...)
	if res.Code != code {
		r.Fatalf("redoubt-coordinator %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), res.Code, code, res.Out, res.Err)
	}
	return res.Err
}

func (r *rig) adminJSON(to any, args ...string) {
	r.Helper()
	out := r.admin(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		r.Fatalf("redoubt-coordinator %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// token creates a join code.
func (r *rig) token(flags ...string) string {
	r.Helper()
	code, err := r.Token(r.ctx, flags...)
	if err != nil {
		r.Fatal(err)
	}
	r.keep(code)
	return code
}

// keep remembers a join code, which must not appear anywhere later.
func (r *rig) keep(code string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.codes = append(r.codes, code)
}

// apply puts a policy in force, and waits until every node enforces it.
func (r *rig) apply(policy string) {
	r.Helper()
	if out, err := r.Apply(r.ctx, policy, "--wait="+patience.String()); err != nil {
		r.Fatalf("%v\n%s", err, out)
	}
}

// settle waits until every node enforces what it should.
func (r *rig) settle() {
	r.Helper()
	r.admin("policy", "status", "--wait="+patience.String())
}

// await repeats f until it returns no error.
func (r *rig) await(what string, f func() error) {
	r.Helper()
	r.awaitEvery(10*time.Millisecond, what, f)
}

// awaitEvery is await for what takes some time and must not keep the machine busy meanwhile.
func (r *rig) awaitEvery(pause time.Duration, what string, f func() error) {
	r.Helper()
	r.awaitWithin(patience, pause, what, f)
}

// awaitWithin is awaitEvery with a limit. The longer it takes, the less often f runs: most attempts start a program.
func (r *rig) awaitWithin(limit, pause time.Duration, what string, f func() error) {
	r.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < limit; time.Sleep(max(pause, min(time.Second, time.Since(begun)/10))) {
		if err = f(); err == nil {
			return
		}
	}
	r.Fatalf("%s: not within %v: %v", what, limit, err)
}

// member is a node of the mesh.
type member struct {
	*mesh.Node
	r      *rig
	id     string
	v4, v6 netip.Addr
}

// machine returns a host with an agent that is not in a mesh yet.
func (r *rig) machine(name string, flags ...string) *member {
	r.Helper()
	h, err := r.World.AddHost(name, r.LAN)
	if err != nil {
		r.Fatal(err)
	}
	return r.agentOn(h, flags...)
}

// agentOn starts an agent on a host.
func (r *rig) agentOn(h *lab.Host, flags ...string) *member {
	r.Helper()
	m := &member{Node: r.NodeOn(h), r: r}
	r.members = append(r.members, m)
	m.start(flags...)
	return m
}

// start starts the agent.
func (m *member) start(flags ...string) {
	m.r.Helper()
	if err := m.StartAgent(m.r.ctx, flags...); err != nil {
		m.r.Fatal(err)
	}
}

// join creates a host and makes it join with its own token.
func (r *rig) join(name string, tokenFlags ...string) *member {
	r.Helper()
	m := r.machine(name)
	m.join(r.token(tokenFlags...))
	return m
}

// joinAll makes several hosts join, given by name and identity ("ann@example.com" or "tag:x"), and waits until they know each
// other.
func (r *rig) joinAll(pairs ...string) (out []*member) {
	r.Helper()
	for i := 0; i < len(pairs); i += 2 {
		flag := "--user"
		if strings.HasPrefix(pairs[i+1], "tag:") {
			flag = "--tag"
		}
		out = append(out, r.join(pairs[i], flag, pairs[i+1]))
	}
	r.settle()
	return out
}

// join runs `redoubt up CODE`.
func (m *member) join(code string) {
	m.r.Helper()
	if _, err := m.Up(m.r.ctx, code); err != nil {
		m.r.Fatal(err)
	}
	st := m.status()
	m.id, m.v4, m.v6 = st.Node.ID, st.V4(), st.V6()
	if st.State != "running" || m.id == "" || !m.v4.IsValid() || !m.v6.IsValid() {
		m.r.Fatalf("%s is up, and its status is %+v", m.Name, st)
	}
}

func (m *member) status() mesh.Status {
	m.r.Helper()
	st, err := m.Status(m.r.ctx)
	if err != nil {
		m.r.Fatal(err)
	}
	return st
}

// awaitStatus waits for a status that matches.
func (m *member) awaitStatus(what string, want func(mesh.Status) bool) {
	m.r.Helper()
	m.r.await(m.Name+" "+what, func() error {
		if st := m.status(); !want(st) {
			return fmt.Errorf("its status is %+v", st)
		}
		return nil
	})
}

func (m *member) awaitState(state string) {
	m.r.Helper()
	m.awaitStatus("is "+state, func(st mesh.Status) bool { return st.State == state })
}

// do runs a redoubt command that must succeed.
func (m *member) do(args ...string) string {
	m.r.Helper()
	out, err := m.Run(m.r.ctx, args...)
	if err != nil {
		m.r.Fatal(err)
	}
	return out
}

// fails runs a redoubt command that must end with an exit code, and returns what it printed, standard error last.
func (m *member) fails(code int, args ...string) string {
	m.r.Helper()
	return m.failsAs(code, lab.Command{Args: args})
}

func (m *member) failsAs(code int, c lab.Command) string {
	m.r.Helper()
	res, _ := m.Exec(m.r.ctx, c)
	if res.Code != code {
		m.r.Fatalf("redoubt %s on %s: exit code %d, want %d\n%s%s", strings.Join(c.Args, " "), m.Name, res.Code, code, res.Out, res.Err)
	}
	return res.Out + res.Err
}

// addrs returns the member's overlay addresses, IPv4 first.
func (m *member) addrs() []netip.Addr { return []netip.Addr{m.v4, m.v6} }

// echo serves TCP and UDP on ports of all addresses.
func (r *rig) echo(h *lab.Host, ports ...uint16) {
	r.Helper()
	for _, p := range ports {
		for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			if err := h.Echo(netip.AddrPortFrom(a, p)); err != nil {
				r.Fatal(err)
			}
		}
	}
}

// contains checks that a text contains all the words, in any order.
func (r *rig) contains(text string, words ...string) {
	r.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			r.Errorf("it does not say %q:\n%s", w, text)
		}
	}
}

// shown is the output of `node show --json`.
type shown struct {
	ID, Name, State          string
	CertificateSequence      uint64
	NodePublic, DevicePublic string
	Quarantine               string
	Attestation              string
	Attested                 struct {
		Level, Highest, Kind, Device, Checked, Lapse string
		Checks, Selectors                            []string
	}
	Facts []struct{ Name, Value string }
}

func (r *rig) show(node string) (s shown) {
	r.Helper()
	r.adminJSON(&s, "node", "show", node)
	return s
}
