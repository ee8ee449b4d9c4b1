package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// chips makes TPMs of one maker.
type chips struct {
	r     *rig
	dir   string
	maker *swtpm.Maker
	roots string
}

// newChips makes a maker whose CA is in a directory for --tpm-roots. Sockets have short paths only, hence the directory.
func newChips(r *rig) *chips {
	r.Helper()
	labtest.Installed(r, swtpm.Missing())
	dir, err := os.MkdirTemp("", "chips")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	c := &chips{r: r, dir: dir, roots: filepath.Join(dir, "roots")}
	if c.maker, err = swtpm.NewMaker(filepath.Join(dir, "maker")); err != nil {
		r.Fatal(err)
	}
	return c
}

// chip makes a TPM and starts it.
func (c *chips) chip(name string) *swtpm.TPM {
	c.r.Helper()
	t, err := swtpm.New(c.r.ctx, filepath.Join(c.dir, name), c.maker)
	if err != nil {
		c.r.Fatal(err)
	}
	c.r.Cleanup(func() {
		if err := t.Close(); err != nil {
			c.r.Error(err)
		}
	})
	if err := c.maker.Roots(c.roots); err != nil {
		c.r.Fatal(err)
	}
	return t
}

// place is what --tpm says of a TPM.
func place(t *swtpm.TPM) string { return "unix:" + t.Socket }

// shown is what `node show` says of a node.
type shown struct {
	ID, Name, Attestation, DevicePublic string
	Attested                            struct {
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

// attested demands a level of a node, in all places where it is shown.
func (r *rig) attested(node, level string) shown {
	r.Helper()
	s := r.show(node)
	fact := slices.ContainsFunc(s.Facts, func(f struct{ Name, Value string }) bool { return f.Name == "device:attestation" && f.Value == level })
	if s.Attestation != level || s.Attested.Level != level || !fact {
		r.Fatalf("%s is attested otherwise than by %s: %+v", node, level, s)
	}
	return s
}

// refusals are the reasons in the audit book why somebody was refused.
func (r *rig) refused(m *member, code string, words ...string) {
	r.Helper()
	r.contains(m.fails(exitFalse, "up", code), words...)
}

// TestTPM lets machines with TPMs join, and others that have less than they should.
func TestTPM(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	c := newChips(r)
	chip, other := c.chip("a"), c.chip("b")
	r.startCoordinator("--tpm-roots", c.roots)
	r.apply(`{
	  "postures": {"posture:genuine": ["device:attestation >= 'tpm'"]},
	  "tagOwners": {"tag:web": []},
	  "grants": [{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["icmp:*"], "srcPosture": ["posture:genuine"]}],
	}`)
	web := r.join("web", "--tag", "tag:web")
	r.attested("web", "token")
	a := r.machine("a", "--tpm", place(chip))
	a.join(r.token("--user", "ann@example.com"))
	s := r.attested("a", "tpm")
	if s.Attested.Kind != "tpm" || !strings.HasPrefix(s.Attested.Device, "tpm:") || s.Attested.Checked == "" {
		t.Errorf("%+v", s.Attested)
	}
	r.contains(strings.Join(s.Attested.Selectors, "\n"), "tpm:vendor=id:00001014", "tpm:model=swtpm", "pcr:7=")
	r.contains(r.admin("node", "show", "a"), "fresh quote of PCR 0, 2, 4, 7", "not measured: the machine has no event log")
	r.contains(a.do("status"), "attestation tpm, device key in the TPM")
	r.settle()
	if _, err := a.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("a posture that the TPM fulfils: %v", err)
	}
	key, err := os.ReadFile(filepath.Join(a.State(), "device.key"))
	if err != nil || !strings.Contains(string(key), "REDOUBT TPM KEY") {
		t.Errorf("the device key on the disk: %v\n%s", err, key)
	}

	// The machine restarts, and the TPM with it.
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := chip.Close(); err != nil {
		t.Fatal(err)
	}
	if err := chip.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	a.start("--tpm", place(chip))
	a.awaitState("running")
	if _, err := a.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("after the restart: %v", err)
	}

	// Its disk in another machine, which has a TPM too.
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	a.start("--tpm", place(other))
	a.awaitStatus("cannot sign", func(st mesh.Status) bool {
		return !st.Coordinator.Connected && strings.Contains(strings.Join(st.Problems, " "), "another TPM's")
	})
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}

	// The same TPM once more, as another node: refused, but with a code that says so.
	again := r.machine("again", "--tpm", place(chip))
	r.refused(again, r.token("--user", "ann@example.com"), "is node a", "--replace a")
	r.refusedInBook("is node a")
	again.join(r.token("--replace", "a"))
	n := r.attested("a", "tpm")
	if n.ID != s.ID || n.DevicePublic == s.DevicePublic || again.id != a.id || again.v4 != a.v4 {
		t.Errorf("replaced: %+v, was %+v", n, s)
	}
	if _, err := again.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("from the machine that took its place: %v", err)
	}

	// A machine without a TPM must not take the place of one that has one.
	less := r.machine("less")
	code := r.token("--replace", "a")
	r.refused(less, code, "was attested by tpm", "node reset a")
	r.refusedInBook("was attested by tpm")
	r.admin("node", "reset", "a")
	less.join(code)
	r.attested("a", "token")
	again.awaitStatus("is out", func(st mesh.Status) bool { return st.State == "revoked" })
	if _, err := less.Host.Ping(r.ctx, web.v4); err == nil {
		t.Error("the posture holds without a TPM")
	}
}

// refusedInBook demands that the newest refusal in the audit book says why.
func (r *rig) refusedInBook(words ...string) {
	r.Helper()
	r.contains(r.Serve.Output(), words...)
}

// TestUnverifiedTPM joins with TPMs of makers that nobody trusts.
func TestUnverifiedTPM(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	c := newChips(r)
	chip := c.chip("a")
	bare, err := swtpm.New(r.ctx, filepath.Join(c.dir, "bare"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	r.startCoordinator()
	r.machine("a", "--tpm", place(chip)).join(r.token("--tag", "tag:a"))
	r.attested("a", "tpm-unverified")

	// Once makers are trusted, one that is not among them is refused; a TPM without a certificate stays unverified.
	foreign := newChips(r)
	foreign.chip("x")
	if err := r.Serve.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.startCoordinator("--tpm-roots", foreign.roots)
	b := r.machine("b", "--tpm", place(c.chip("b")))
	r.refused(b, r.token("--tag", "tag:b"), "not trusted here", "--tpm off")
	r.machine("bare", "--tpm", place(bare)).join(r.token("--tag", "tag:b"))
	r.attested("bare", "tpm-unverified")
	var all json.RawMessage
	r.adminJSON(&all, "node", "list")
}
