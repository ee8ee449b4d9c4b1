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
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// briefChips returns a mesh whose certificates last only seconds, and whose coordinator trusts the maker of one TPM.
func briefChips(t *testing.T, flags ...string) (*rig, *chips, *swtpm.TPM) {
	t.Helper()
	r := rigOf(t, brief)
	c := newChips(r)
	chip := c.chip("a")
	r.startCoordinator(append(flags, "--tpm-roots", c.roots)...)
	return r, c, chip
}

// TestKeysChangeUnderTraffic lets the real programs renew their certificates and change their keys every few seconds while
// packets go both ways, and checks that none is lost. One of the machines has a TPM, and proves itself each time. All log as
// much as they can, so that secrets in rare log lines are found as well.
func TestKeysChangeUnderTraffic(t *testing.T) {
	t.Parallel()
	const verbose = "--log-level=debug"
	r, _, chip := briefChips(t, "--cert-lifetime=16s", verbose)
	r.apply(open)
	a, b := r.machine("a", "--tpm", place(chip), verbose), r.machine("b", verbose)
	a.join(r.token("--user", "ann@example.com"))
	b.join(r.token("--tag", "tag:b"))
	nodes := []*member{a, b}
	r.settle()
	first := r.attested("a", "tpm").Attested
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
			r.keepKeys()
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
	if last := r.attested("a", "tpm").Attested; last.Checked <= first.Checked || last.Device != first.Device || last.Lapse != "" {
		t.Errorf("proved at first %+v, and with the last certificate %+v", first, last)
	}

	// Power-cycle the machine, which resets its TPM: loaded objects are lost, but it can still prove itself.
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(chip.Close(), chip.Start(r.ctx)); err != nil {
		t.Fatal(err)
	}
	before := r.show("a")
	a.start("--tpm", place(chip), verbose)
	r.await("a proves itself again", func() error {
		if s := r.show("a"); s.CertificateSequence < before.CertificateSequence+2 {
			return fmt.Errorf("it has certificate %d", s.CertificateSequence)
		}
		return nil
	})
	if last := r.attested("a", "tpm").Attested; last.Checked <= before.Attested.Checked || last.Device != first.Device || last.Lapse != "" {
		t.Errorf("proved before the reset %+v, and after it %+v", before.Attested, last)
	}
}

// TestCopiedStateDirectory starts another machine on a copy of a node's state directory.
func TestCopiedStateDirectory(t *testing.T) {
	t.Parallel()
	t.Run("keys in files", func(t *testing.T) {
		t.Parallel()
		r := briefRig(t, 16*time.Second)
		a := r.machine("a")
		r.copied(a, func() []string { return nil })
	})
	// A disk is useless without its TPM; only a virtual machine can be copied together with it.
	t.Run("with the TPM", func(t *testing.T) {
		t.Parallel()
		r, c, chip := briefChips(t, "--cert-lifetime=16s")
		a := r.machine("a", "--tpm", place(chip))
		r.copied(a, func() []string {
			if s := r.attested("a", "tpm"); s.CertificateSequence < 3 {
				t.Errorf("%+v", s)
			}
			if err := chip.Close(); err != nil {
				t.Fatal(err)
			}
			twin, err := chip.Copy(r.ctx, filepath.Join(c.dir, "twin"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = twin.Close() })
			if err := chip.Start(r.ctx); err != nil {
				t.Fatal(err)
			}
			return []string{"--tpm", place(twin)}
		})
	})
}

// copied copies the state of a machine in use, and starts another machine on the copy. twin copies what the machine has
// beside its disk, and returns the flags for an agent that uses that.
func (r *rig) copied(a *member, twin func() []string) {
	r.Helper()
	r.apply(open)
	a.join(r.token("--user", "ann@example.com"))
	b := r.join("b", "--tag", "tag:b")
	r.settle()
	flow := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(flow, 5)

	thief := r.machine("thief")
	if err := thief.Agent.Stop(r.ctx); err != nil {
		r.Fatal(err)
	}
	if err := copyDir(thief.State(), a.State()); err != nil {
		r.Fatal(err)
	}
	r.await("a renews", func() error {
		if r.show("a").CertificateSequence < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	thief.start(twin()...)
	quarantined := func(st mesh.Status) bool { return st.State == "quarantined" }
	thief.awaitStatus("in quarantine", quarantined)
	a.awaitStatus("in quarantine", quarantined)
	b.awaitStatus("without peers", func(st mesh.Status) bool { return len(st.Peers) == 0 })
	if s := r.show("a"); s.State != "quarantined" || s.Quarantine == "" {
		r.Errorf("the coordinator shows %+v", s)
	}
	r.contains(strings.Join(strings.Fields(r.admin("node", "show", "a")), " "), "quarantine", "ticket", "node release a")
	r.contains(r.admin("node", "list"), "quarantined")
	r.contains(strings.Join(thief.status().Problems, "\n"), "two machines", "node release")
	r.contains(r.adminFails(1, "node", "release", "b"), "not in quarantine")

	if err := thief.Agent.Stop(r.ctx); err != nil {
		r.Fatal(err)
	}
	r.contains(r.admin("node", "release", "a"), "a is released")
	a.awaitStatus("running", func(st mesh.Status) bool { return st.State == "running" && len(st.Peers) == 1 })
	again := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	r.lives(again, 5)
}

// copyDir copies the files in a directory, with their modes.
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
