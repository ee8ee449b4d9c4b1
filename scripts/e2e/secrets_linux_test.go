package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// secret is something that must not be printed, in one of its forms.
type secret struct{ what, form string }

// forms returns the forms in which bytes could be printed.
func forms(what string, b []byte) (out []secret) {
	text := hex.EncodeToString(b)
	for _, f := range []string{
		string(b), text, strings.ToUpper(text), base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
	} {
		out = append(out, secret{what, f})
	}
	return out
}

// secrets collects all secrets of this test: join codes, private keys in files, tickets.
func (r *rig) secrets() (out []secret) {
	r.Helper()
	out = append(r.tickets(), r.former...)
	for _, text := range r.codes {
		out = append(out, secret{"a join code", strings.TrimPrefix(text, "redoubt1-")})
		code, err := join.Parse(text)
		if err != nil {
			r.Errorf("a join code that is none: %v", err)
			continue
		}
		seed := code.Secret.Expose()
		out = append(out, forms("a join code's seed", seed[:])...)
	}
	keys := 0
	err := filepath.WalkDir(filepath.Dir(r.Data()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".key" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found := privateKeys(path, b)
		if len(found) == 0 {
			r.Errorf("%s holds no key that this test could look for", path)
		}
		keys++
		out = append(out, found...)
		return nil
	})
	if err != nil {
		r.Error(err)
	}
	if keys == 0 && r.Serve != nil {
		r.Error("no file of a key was found")
	}
	return out
}

// ticketOf finds the ticket in an identity file.
var ticketOf = regexp.MustCompile(`"Ticket":"([A-Za-z0-9+/]+=*)"`)

// tickets returns the tickets for the next renewal of each node.
func (r *rig) tickets() (out []secret) {
	r.Helper()
	for _, m := range r.members {
		b, err := os.ReadFile(filepath.Join(m.State(), "identity"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is not in a mesh
		}
		found := ticketOf.FindSubmatch(b)
		if err != nil || found == nil {
			r.Errorf("%s: no ticket in its identity: %v", m.Name, err)
			continue
		}
		ticket, err := base64.StdEncoding.DecodeString(string(found[1]))
		if err != nil {
			r.Errorf("%s: its ticket: %v", m.Name, err)
			continue
		}
		out = append(out, forms("a ticket of "+m.Name, ticket)...)
	}
	return out
}

// keepKeys remembers the current tickets and node keys, which must not appear anywhere after they were replaced.
func (r *rig) keepKeys() {
	r.Helper()
	found := r.tickets()
	for _, m := range r.members {
		path := filepath.Join(m.State(), "node.key")
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is not in a mesh
		}
		keys := privateKeys(path, b)
		if err != nil || len(keys) == 0 {
			r.Errorf("%s holds no key that this test could look for: %v", path, err)
		}
		found = append(found, keys...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.former = append(r.former, found...)
}

// readBook makes the coordinator, if it still runs, print its audit log of the test, and checks that it was not tampered
// with.
func (r *rig) readBook(ctx context.Context) {
	r.Helper()
	if r.Serve == nil {
		return
	}
	select {
	case <-r.Serve.Done():
		return
	default:
	}
	for _, args := range [][]string{{"audit", "export"}, {"audit", "list", "--limit", "1000", "--json"}, {"audit", "checkpoint"}, {"audit", "verify"}, {"lock", "list", "--json"}} {
		if res, err := r.AdminExec(ctx, args...); err != nil {
			r.Errorf("%v: %v\n%s", args, err, res.Err)
		} else if args[1] == "export" {
			r.sayAll(res.Out)
		}
	}
}

// sayAll checks that an export of the audit log begins with the mesh's creation, and that each record says who did what to
// what and, unless the coordinator acted by itself, from where and at which version, which does not exist while a backup is
// restored.
func (r *rig) sayAll(export string) {
	r.Helper()
	if !strings.Contains(export, `"action":"mesh.create"`) {
		r.Errorf("the audit log does not begin with the mesh: %s", export)
	}
	for line := range strings.Lines(export) {
		var rec struct {
			By, From, Action, Subject, Version string
			At                                 time.Time
		}
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			r.Errorf("%v: %s", err, line)
		}
		itself, versioned := rec.By == "coordinator", rec.Version != "" || rec.Action == "mesh.restore"
		if rec.By == "" || rec.Action == "" || rec.Subject == "" || rec.At.IsZero() || !itself && (rec.From == "" || !versioned) {
			r.Errorf("a record does not say all: %s", line)
		}
	}
}

// privateKeys returns the secrets in a PEM file.
func privateKeys(path string, text []byte) (out []secret) {
	i := bytes.Index(text, []byte("-----BEGIN"))
	if i < 0 {
		return nil
	}
	for block, rest := pem.Decode(text[i:]); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			continue
		}
		out = append(out, forms(path, block.Bytes)...)
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			parsed, err = x509.ParseECPrivateKey(block.Bytes)
		}
		if k, ok := parsed.(ed25519.PrivateKey); ok && err == nil {
			out = append(out, forms(path, k.Seed())...)
		}
		if k, ok := parsed.(*ecdsa.PrivateKey); ok && err == nil {
			if scalar, err := k.Bytes(); err == nil {
				out = append(out, forms(path, scalar)...)
			}
		}
	}
	return out
}

// lookForSecrets searches everything that was printed and logged, and the coordinator's data, for secrets.
func (r *rig) lookForSecrets() {
	r.Helper()
	secrets := r.secrets()
	texts := r.said
	err := filepath.WalkDir(r.World.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		isStore := filepath.Dir(path) == r.Data() && d.Type().IsRegular()
		if filepath.Ext(path) != ".log" && !isStore {
			return nil
		}
		b, err := os.ReadFile(path)
		texts = append(texts, saying{path, string(b)})
		return err
	})
	if err != nil {
		r.Error(err)
	}
	if len(texts) == 0 {
		r.Error("nobody has said anything")
	}
	for _, t := range texts {
		for _, s := range secrets {
			if strings.Contains(t.text, s.form) {
				r.Errorf("%s shows a secret: %s", t.who, s.what)
			}
		}
	}
}

// given matches keys that a program might contain.
var given = regexp.MustCompile(`-----BEGIN [A-Z ]*KEY-----\s+[A-Za-z0-9+/=]{16}`)

// TestProgramsBringNoSecret looks for keys that everyone with the programs would have.
func TestProgramsBringNoSecret(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"redoubt", "redoubt-coordinator"} {
		b, err := os.ReadFile(filepath.Join(bin, name))
		if err != nil {
			t.Fatal(err)
		}
		if found := given.FindAll(b, -1); len(found) > 0 {
			t.Errorf("%s comes with %q", name, found)
		}
	}
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file, err := device.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	if !given.Match(append([]byte("program\x00"), file...)) {
		t.Errorf("a key that a program brings is not noticed: %s", file)
	}
}

// TestSecretsAreSeen prints keys in ways that the search above must notice.
func TestSecretsAreSeen(t *testing.T) {
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	devicePEM, err := device.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	_, audit, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	auditDER, err := x509.MarshalPKCS8PrivateKey(audit)
	if err != nil {
		t.Fatal(err)
	}
	auditPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: auditDER})
	secret := node.Expose()
	nodePEM := pem.EncodeToMemory(&pem.Block{Type: "REDOUBT NODE KEY", Bytes: secret[:]})
	for _, c := range []struct{ name, file, shown string }{
		{"node key as wg prints it", string(nodePEM), base64.StdEncoding.EncodeToString(secret[:])},
		{"node key as UAPI prints it", string(nodePEM), hex.EncodeToString(secret[:])},
		{"seed of the audit key", string(auditPEM), hex.EncodeToString(audit.Seed())},
		{"file of the device key", string(devicePEM), strings.ReplaceAll(string(devicePEM), "\n", "")},
	} {
		found := false
		for _, s := range privateKeys(c.name, []byte("# a comment\n"+c.file)) {
			found = found || strings.Contains("msg="+c.shown+" more", s.form)
		}
		if !found {
			t.Errorf("%s: not noticed", c.name)
		}
	}
	if keys := privateKeys("none", []byte("nothing")); len(keys) != 0 {
		t.Errorf("keys of nothing: %v", keys)
	}
}
