package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// TestKeysChangeUnderTraffic has real programs renew their certificates, and change their keys, every few seconds while packets go
// both ways: none is lost.
func TestKeysChangeUnderTraffic(t *testing.T) {
	t.Parallel()
	r := briefRig(t, 16*time.Second)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	there := r.udpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 1000))
	back := r.udpFlow(b.Host, a.Host, netip.AddrPortFrom(a.v6, 1000))
	flow := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(flow, 20)
	keys := map[string]bool{}
	for sequence := uint64(2); sequence <= 7; sequence++ {
		for _, n := range nodes {
			r.await(fmt.Sprintf("%s has certificate %d", n.Name, sequence), func() error {
				s := r.show(n.Name)
				if s.CertificateSequence < sequence {
					return fmt.Errorf("it has %d", s.CertificateSequence)
				}
				keys[s.NodePublic] = true
				return nil
			})
		}
	}
	if len(keys) < 10 {
		t.Errorf("%d keys were in use", len(keys))
	}
	r.lives(flow, 20)
	r.losesNothing(there)
	r.losesNothing(back)
	t.Logf("%d and %d packets, %d keys", there.sent.Load(), back.sent.Load(), len(keys))
	for _, n := range nodes {
		if st := n.status(); len(st.Problems) > 0 {
			t.Errorf("%s: %q", n.Name, st.Problems)
		}
	}
}

// TestCopiedStateDirectory starts another machine on a copy of a node's state directory.
func TestCopiedStateDirectory(t *testing.T) {
	t.Parallel()
	r := briefRig(t, 16*time.Second)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	flow := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(flow, 5)

	thief := r.machine("thief")
	if err := thief.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := copyDir(thief.State(), a.State()); err != nil {
		t.Fatal(err)
	}
	r.await("a renews", func() error {
		if r.show("a").CertificateSequence < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	thief.start()
	quarantined := func(st mesh.Status) bool { return st.State == "quarantined" }
	thief.awaitStatus("in quarantine", quarantined)
	a.awaitStatus("in quarantine", quarantined)
	b.awaitStatus("without peers", func(st mesh.Status) bool { return len(st.Peers) == 0 })
	if s := r.show("a"); s.State != "quarantined" || s.Quarantine == "" {
		t.Errorf("the coordinator shows %+v", s)
	}
	r.contains(r.admin("node", "show", "a"), "quarantine", "ticket", "node release a")
	r.contains(r.admin("node", "list"), "quarantined")
	r.contains(strings.Join(thief.status().Problems, "\n"), "two machines", "node release")
	r.contains(r.adminFails(1, "node", "release", "b"), "not in quarantine")

	if err := thief.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.contains(r.admin("node", "release", "a"), "a is released")
	a.awaitStatus("running", func(st mesh.Status) bool { return st.State == "running" && len(st.Peers) == 1 })
	again := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(again, 5)
}

// copyDir copies what is in a directory, with the modes that the files have.
func copyDir(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, filepath.Base(path)), b, 0o600)
	})
}
