package agenttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/redoubt-mesh/redoubt/agent"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// chip makes a TPM. It lives in real time, outside of any bubble.
func chip(t *testing.T) *swtpm.TPM {
	t.Helper()
	labtest.Installed(t, swtpm.Missing())
	dir, err := os.MkdirTemp("", "chip")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := swtpm.New(context.Background(), filepath.Join(dir, "a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// endorsement sets the password of the TPM's endorsement hierarchy. With one, nothing can be quoted; the owner's keys still work.
func endorsement(t *testing.T, c *swtpm.TPM, before, after string) {
	t.Helper()
	tpm, err := linuxudstpm.Open(c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	_, err = tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth([]byte(before))},
		NewAuth:    tpm2.TPM2BAuth{Buffer: []byte(after)},
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}

// attested returns what the coordinator knows about a node's machine.
func (m *mesh) attested(name string) *redoubtv1.Attestation { return m.Nodes()[name].GetAttested() }

// TestTPMAtRenewals has a node prove itself again with each certificate, and fail to for some time.
func TestTPMAtRenewals(t *testing.T) {
	t.Parallel()
	c := chip(t)
	inBubble(t, func(m *mesh) {
		n := m.Machine("a")
		n.stop()
		n.configure = func(c2 *agent.Config) { c2.TPM = "unix:" + c.Socket }
		n.start()
		n.Up(m.Code(tags("tag:db")))
		first := m.attested("a")
		if first.GetLevel() != "tpm-unverified" || first.GetKind() != "tpm" || first.GetHighest() != "tpm-unverified" || n.Status().GetDeviceKey() != "tpm" {
			t.Fatalf("%v", first)
		}
		renewed := func(what string, sequence uint64) {
			t.Helper()
			m.Await(2*time.Hour, what, func() bool { return m.Nodes()["a"].GetCertificateSequence() >= sequence })
		}
		renewed("a renewal", 3)
		if now := m.attested("a"); now.GetLevel() != "tpm-unverified" || now.GetChecked() <= first.GetChecked() || now.GetSince() != first.GetSince() {
			t.Errorf("%v, was %v", now, first)
		}
		if level := n.Status().GetNode().GetAttestation(); level != "tpm-unverified" {
			t.Errorf("its certificate says %s", level)
		}

		// It still holds its device key, but cannot quote: it stays a node, as one that proves no more than its key.
		n.stop()
		endorsement(t, c, "", "locked")
		n.start()
		renewed("a renewal without a quote", 5)
		if now := m.attested("a"); now.GetLevel() != "token" || now.GetHighest() != "tpm-unverified" || len(now.GetSelectors()) != 0 ||
			!strings.Contains(now.GetLapse(), "quote") && !strings.Contains(now.GetLapse(), "attestation key") {
			t.Errorf("%v", now)
		}
		n.stop()
		endorsement(t, c, "locked", "")
		n.start()
		renewed("a renewal with a quote again", 7)
		if now := m.attested("a"); now.GetLevel() != "tpm-unverified" || now.GetLapse() != "" || now.GetDevice() != first.GetDevice() {
			t.Errorf("%v", now)
		}
	})
}

// TestTPMOfNoUse starts with a TPM that cannot attest: the device key is made in a file, or not at all if the TPM was requested.
func TestTPMOfNoUse(t *testing.T) {
	t.Parallel()
	c := chip(t)
	endorsement(t, c, "", "locked")
	inBubble(t, func(m *mesh) {
		for _, insist := range []bool{true, false} {
			n := m.Machine(map[bool]string{true: "insists", false: "gives-way"}[insist])
			n.stop()
			n.configure = func(c2 *agent.Config) {
				c2.TPM = "unix:" + c.Socket
				if insist {
					c2.DeviceKey = agent.KeyTPM
				}
			}
			n.start()
			st, err := n.TryUp(m.Code(tags("tag:db")), time.Minute)
			if insist {
				if err == nil || !n.Problem("--device-key file") {
					t.Errorf("%v, %v", n.Status(), err)
				}
				n.stop()
				continue
			}
			if err != nil || st.GetDeviceKey() != "file" || m.attested("gives-way").GetLevel() != "token" {
				t.Errorf("%v, %v", st, err)
			}
		}
	})
}

// TestTPMIsBackLater starts a node whose TPM does not answer, while the coordinator is away: it keeps its keys, says why nothing
// passes, and goes on as soon as the TPM answers.
func TestTPMIsBackLater(t *testing.T) {
	t.Parallel()
	c := chip(t)
	inBubble(t, func(m *mesh) {
		a, b := m.Machine("a"), m.Join("b", tags("tag:db"))
		b.Listen(22)
		a.stop()
		a.configure = func(c2 *agent.Config) { c2.TPM = "unix:" + c.Socket }
		a.start()
		a.Up(m.Code(tags("tag:db")))
		m.Policy(open)
		a.Reaches(b, 22)
		file := filepath.Join(a.dir, "node.key")
		before := must(os.ReadFile(file))(t)
		m.center.stop()
		a.stop()
		away := c.Socket + ".away"
		if err := os.Rename(c.Socket, away); err != nil {
			t.Fatal(err)
		}
		a.start()
		time.Sleep(time.Minute)
		if !a.Problem("node keys cannot be read") || a.Visit(b.V4(), 22) == nil {
			t.Errorf("without the TPM: %v", a.Status())
		}
		if err := os.Rename(away, c.Socket); err != nil {
			t.Fatal(err)
		}
		m.Await(time.Minute, "a reaches b again", func() bool { return a.Visit(b.V4(), 22) == nil })
		if after := must(os.ReadFile(file))(t); !bytes.Equal(before, after) {
			t.Error("the node keys on the disk are other ones")
		}
		if a.Problem("node key") {
			t.Errorf("with the TPM: %q", a.Status().GetProblems())
		}
		m.center.start()
		m.Await(time.Hour, "a renews", func() bool { return m.Nodes()["a"].GetCertificateSequence() > 1 })
		a.Reaches(b, 22)
	})
}

// TestNodeKeysAreWrapped checks that with the device key in the TPM, the node keys on the disk are useless without it, and that
// a node that has lost them renews with a new one.
func TestNodeKeysAreWrapped(t *testing.T) {
	t.Parallel()
	c := chip(t)
	inBubble(t, func(m *mesh) {
		a, b := m.Machine("a"), m.Join("b", tags("tag:db"))
		b.Listen(22)
		a.stop()
		a.configure = func(c2 *agent.Config) { c2.TPM = "unix:" + c.Socket }
		a.start()
		a.Up(m.Code(tags("tag:db")))
		m.Policy(open)
		a.Reaches(b, 22)
		file := filepath.Join(a.dir, "node.key")
		wrapped := func() *pem.Block {
			t.Helper()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(text)
			if block == nil || block.Type != "REDOUBT WRAPPED NODE KEY" || strings.Contains(string(text), "REDOUBT NODE KEY") {
				t.Fatalf("the node keys are on the disk as %s", text)
			}
			return block
		}
		wrapped()
		a.restart()
		m.Agree()
		a.Reaches(b, 22)

		a.stop()
		block := wrapped()
		block.Bytes[len(block.Bytes)-1] ^= 1
		damaged := pem.EncodeToMemory(block)
		if err := os.WriteFile(file, fmt.Appendf(nil, "redoubt node.key 1 %x\n%s", sha256.Sum256(damaged), damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		before := m.Nodes()["a"].GetCertificateSequence()
		a.start()
		m.Await(10*time.Minute, "a renews", func() bool { return m.Nodes()["a"].GetCertificateSequence() > before })
		m.Await(time.Hour, "a reaches b again", func() bool { return a.Visit(b.V4(), 22) == nil })
		wrapped()
		if st := a.Status(); len(st.GetProblems()) > 0 {
			t.Errorf("%q", st.GetProblems())
		}
	})
}
