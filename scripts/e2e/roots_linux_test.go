package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// rootsShown is the output of `root list --json`.
type rootsShown struct {
	Roots []struct {
		Fingerprint, State string
		KeyHere            bool
	}
	Intermediate struct{ Serial string }
	Nodes        []string
	Warnings     []string
}

func (r *rig) rootList() (s rootsShown) {
	r.Helper()
	r.adminJSON(&s, "root", "list")
	return s
}

// renewed waits until nodes have renewed.
func (r *rig) renewed(nodes ...*member) {
	r.Helper()
	for _, n := range nodes {
		last := r.show(n.Name).CertificateSequence
		r.awaitEvery(time.Second, n.Name+" renews", func() error {
			if s := r.show(n.Name).CertificateSequence; s == last {
				return fmt.Errorf("it has certificate %d", s)
			}
			return nil
		})
		r.keepKeys()
	}
}

// retired waits until nothing depends on the old root, and retires it.
func (r *rig) retired() {
	r.Helper()
	r.awaitEvery(time.Second, "nothing hangs on the old root", func() error {
		s := r.rootList()
		if len(s.Roots) == 1 {
			return nil // automatically
		}
		if len(s.Nodes) > 0 {
			return fmt.Errorf("%v do", s.Nodes)
		}
		r.admin("root", "retire")
		return nil
	})
}

// TestRootsAreReplaced replaces the mesh's root while packets go both ways, takes its key offline, has an intermediate signed
// there, and finally another root. It checks that nothing is lost.
func TestRootsAreReplaced(t *testing.T) {
	t.Parallel()
	r := briefRig(t, 16*time.Second)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	there := r.udpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 1000))
	back := r.udpFlow(b.Host, a.Host, netip.AddrPortFrom(a.v6, 1000))
	flow := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(flow, 20)
	first := r.rootList()
	early, stale := r.token("--tag", "tag:b"), r.token("--tag", "tag:b", "--reusable")

	r.keepRoot()
	r.admin("root", "rotate")
	r.contains(r.adminFails(1, "root", "retire"), "node a", "node b", "--force")
	if s := r.rootList(); len(s.Roots) != 2 || s.Roots[1].Fingerprint != first.Roots[0].Fingerprint || len(s.Warnings) > 0 {
		t.Errorf("rotated: %+v", s)
	}
	c := r.machine("c")
	c.join(early)
	r.settle()
	r.await("c reaches b", func() error {
		_, err := c.Run(r.ctx, "ping", b.id, "-c", "1")
		return err
	})
	r.renewed(nodes...)
	r.contains(r.adminFails(1, "root", "retire"), "join code")
	r.admin("root", "retire", "--force")
	d := r.machine("d")
	r.contains(d.fails(1, "up", stale), "ask for a new code")
	d.join(r.token("--tag", "tag:b"))
	r.lives(flow, 20)

	// The key leaves the machine. Requests are carried to it.
	vault := t.TempDir()
	at := func(name string) string { return filepath.Join(vault, name) }
	if err := os.WriteFile(at("passphrase"), []byte("what the vault knows\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.keepRoot()
	r.admin("root", "export", "--offline", at("root.age"), "--data", r.Data(), "--passphrase-file", at("passphrase"))
	if _, err := os.Stat(filepath.Join(r.Data(), "pki", "root.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the root's key is still there: %v", err)
	}
	if s := r.rootList(); s.Roots[0].KeyHere {
		t.Errorf("exported: %+v", s)
	}
	r.contains(r.adminFails(1, "root", "rotate"), "not on this machine", "root request")
	before := r.rootList().Intermediate.Serial
	r.admin("root", "request", at("request"))
	r.admin("root", "sign", at("request"), "--key", at("root.age"), "--passphrase-file", at("passphrase"), "--out", at("answer"))
	r.contains(r.admin("root", "install", at("answer")), "the intermediate is installed", "offline")
	if r.rootList().Intermediate.Serial == before {
		t.Error("the intermediate is the same")
	}
	r.renewed(nodes...)
	r.admin("root", "request", at("request"))
	r.admin("root", "sign", at("request"), "--key", at("root.age"), "--passphrase-file", at("passphrase"), "--out", at("answer"), "--new-root", at("next.age"))
	r.contains(r.admin("root", "install", at("answer")), "there is a new root")
	r.killCoordinator()
	r.startCoordinator("--cert-lifetime=16s")
	r.retired()
	r.lives(flow, 20)
	r.losesNothing(there)
	r.losesNothing(back)
	for _, n := range nodes {
		n.awaitStatus("without problems", func(st mesh.Status) bool { return st.State == "running" && len(st.Problems) == 0 })
	}
	r.contains(r.admin("audit", "list", "--json", "--limit", "100"), "root.rotate", "root.retire", "root.away", "root.request", "intermediate.replace")
	t.Logf("%d and %d packets", there.sent.Load(), back.sent.Load())
}

// keepRoot remembers the root's key, which must not appear anywhere later.
func (r *rig) keepRoot() {
	r.Helper()
	path := filepath.Join(r.Data(), "pki", "root.key")
	b, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.former = append(r.former, privateKeys(path, b)...)
}

// killCoordinator kills the coordinator with -9.
func (r *rig) killCoordinator() {
	r.Helper()
	if err := r.Serve.Kill(); err != nil {
		r.Fatal(err)
	}
}
