package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestAuditCommands(t *testing.T) {
	dir := place(t)
	s, _, _, stop, _ := startedIn(t, dir)
	s.ok("token", "create", "--user", "ann@example.com")
	s.ok("user", "role", "set", "bob@example.com", "admin")
	list := decode[struct{ Records []auditRecord }](t, s.ok("audit", "list", "--json")).Records
	if len(list) != 4 || list[0].Action != audit.RolesSet || list[1].Action != audit.TokenCreate || list[2].Action != audit.KeyChange || list[3].Action != audit.MeshCreate {
		t.Fatalf("%+v", list)
	}
	if r := list[1]; r.User != "ann@example.com" || r.From != "admin socket" || !strings.HasPrefix(r.By, "uid ") || r.Version == "" {
		t.Errorf("%+v", r)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--user", "ann@example.com"}, 1},
		{[]string{"--user", "nobody@example.com"}, 0},
		{[]string{"--node", "n1"}, 0},
		{[]string{"--since", "1h"}, 4},
		{[]string{"--since", "2126-01-01"}, 0},
		{[]string{"--limit", "2"}, 2},
		{[]string{"--before", "2"}, 1},
	} {
		args := append([]string{"audit", "list", "--json"}, c.args...)
		if got := decode[struct{ Records []auditRecord }](t, s.ok(args...)).Records; len(got) != c.want {
			t.Errorf("%v: %d records, want %d", c.args, len(got), c.want)
		}
	}
	s.no("want a time", "audit", "list", "--since", "yesterday")
	if out := s.ok("audit", "list"); !strings.Contains(out, "token.create") || !strings.Contains(out, "\n    why  first start; ") ||
		strings.Contains(out, "    from  ") {
		t.Error(out)
	}
	if out := s.ok("audit", "verify"); !strings.Contains(out, "4 records are unchanged, and match the checkpoints (1)") {
		t.Error(out)
	}

	// What an administrator stores elsewhere: an export, a checkpoint, the public key.
	_, exported, _ := s.try("", "audit", "export")
	if strings.Count(exported, "\n") != 4 || !strings.HasPrefix(exported, `{"v":2,"number":1,`) {
		t.Error(exported)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	_, kept, _ := s.try("", "audit", "checkpoint")
	key := filepath.Join(s.data, "pki", "audit.pub")
	checkpoint, whole := file("checkpoint", kept), file("export", exported)
	s.ok("token", "create")
	s.ok("audit", "verify", "--checkpoint", checkpoint, "--key", key)
	s.ok("audit", "verify", whole, "--checkpoint", checkpoint, "--key", key)
	s.no("another key", "audit", "verify", "--checkpoint", checkpoint, "--key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	s.no("record 3 was changed", "audit", "verify", file("changed", strings.Replace(exported, "ann@", "eve@", 1)))
	lines := strings.SplitAfter(exported, "\n")
	s.no("record 2 is missing", "audit", "verify", file("short", lines[0]+lines[2]+lines[3]))
	s.no("ends with record 3", "audit", "verify", file("cut", lines[0]+lines[1]+lines[2]), "--checkpoint", checkpoint)
	s.no("checkpoint", "audit", "verify", "--checkpoint", file("forged", strings.Replace(kept, `"number":4`, `"number":5`, 1)))
	code, out, _ := s.try("", "audit", "verify", file("changed", strings.Replace(exported, "ann@", "eve@", 1)), "--json")
	if v := decode[struct {
		Sound bool
		Found string
	}](t, out); code != 1 || v.Sound || !strings.Contains(v.Found, "record 3") {
		t.Errorf("exit %d: %s", code, out)
	}
	stop()

	// An attacker edits the log of a stopped coordinator, and makes the hashes fit.
	forge(t, s.data)
	s, _, _, stop, _ = startedIn(t, dir)
	defer stop()
	s.no("record 4 is not the one", "audit", "verify", "--checkpoint", checkpoint, "--key", key)
	if got := s.ok("audit", "list", "--limit", "1"); !strings.Contains(got, "audit.unsealed") {
		t.Errorf("the coordinator does not say that its log is another one: %s", got)
	}
}

// TestAuditTable checks that the table shows when something was done, to the second, from where, and which policy it was about.
func TestAuditTable(t *testing.T) {
	at := time.Date(2026, 8, 1, 12, 30, 45, 0, time.Local)
	var out bytes.Buffer
	p := &program{out: &out}
	p.table(auditColumns, [][]string{
		auditRow(&redoubtv1.AuditRecord{Number: 8, AtMs: at.UnixMilli(), By: "uid 0", From: "admin socket", Action: audit.PolicyApply, Subject: "3"}),
		auditRow(&redoubtv1.AuditRecord{
			Number: 7, AtMs: at.UnixMilli(), By: "node n1", From: "192.0.2.7:4711", Action: audit.RenewRefuse, Subject: "n1", Name: "web", Reason: "locked",
		}),
	})
	want := "" +
		"RECORD  WHEN                 WHO      WHAT               ABOUT\n" +
		"8       2026-08-01 12:30:45  uid 0    policy.apply       policy 3\n" +
		"7       2026-08-01 12:30:45  node n1  node.renew.refuse  web\n" +
		"    from  192.0.2.7:4711\n" +
		"    why  locked\n"
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", &out, want)
	}
}

// forge changes the user in the third record and rewrites all that follows, as an attacker could who has the data but not the
// key.
func forge(t *testing.T, data string) {
	t.Helper()
	st, err := bolt.Open(data, bolt.Options{Migrations: directory.Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	list, _, err := st.List(t.Context(), audit.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	prev := ""
	var ops []store.Op
	for _, e := range list {
		r, err := audit.Parse(e)
		if err != nil {
			t.Fatal(err)
		}
		r.User = strings.Replace(r.User, "ann", "eve", 1)
		op, hash, err := audit.Append(prev, r)
		if err != nil {
			t.Fatal(err)
		}
		ops, prev = append(ops, op), hash
	}
	head, err := st.Get(t.Context(), "head")
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]json.RawMessage
	if err := json.Unmarshal(head.Value, &h); err != nil {
		t.Fatal(err)
	}
	h["auditHash"] = fmt.Appendf(nil, "%q", prev)
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Txn(t.Context(), nil, append(ops, store.Put("head", b))); err != nil {
		t.Fatal(err)
	}
}

// TestReadingCostsNoWrites checks that reading the audit log writes nothing to disk, not even to the log itself.
func TestReadingCostsNoWrites(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	for i := range 300 { // more than one page, and enough for a stored checkpoint
		s.ok("user", "role", "set", fmt.Sprintf("u%d@example.com", i), "admin")
	}
	before := filesOf(t, s.data)
	_, exported, _ := s.try("", "audit", "export")
	if strings.Count(exported, "\n") != 302 {
		t.Fatalf("%d records", strings.Count(exported, "\n"))
	}
	file := filepath.Join(t.TempDir(), "export")
	if err := os.WriteFile(file, []byte(exported), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.ok("audit", "list")
		s.ok("audit", "list", "--json", "--limit", "1000", "--user", "u7@example.com")
		s.ok("audit", "list", "--since", "1h", "--node", "n1")
		s.ok("audit", "verify")
		s.ok("audit", "verify", file)
		s.try("", "audit", "checkpoint")
		s.try("", "audit", "export", "--after", "299")
	}
	if diff := cmp.Diff(before, filesOf(t, s.data)); diff != "" {
		t.Errorf("what is on the disk has changed: %s", diff)
	}
}

// filesOf returns the hash and modification time of each file below a directory, by path.
func filesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		files[path] = fmt.Sprintf("%x at %v", sha256.Sum256(b), info.ModTime())
		return err
	})
	if err != nil || len(files) < 2 {
		t.Fatalf("%v: %v", files, err)
	}
	return files
}

// TestAuditExportFollows checks that records are printed as they are made.
func TestAuditExportFollows(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	p := &program{in: strings.NewReader(""), out: w, err: new(bytes.Buffer), lookup: func(k string) (string, bool) { return s.data, k == "REDOUBT_DATA" }}
	go func() {
		done <- p.run(ctx, []string{"audit", "export", "-f", "--after", "2"})
		w.Close()
	}()
	lines := json.NewDecoder(r)
	for i := range 3 {
		s.ok("token", "create", "--tag", fmt.Sprint("tag:t", i))
		var rec auditRecord
		if err := lines.Decode(&rec); err != nil || rec.Action != audit.TokenCreate || rec.Name != fmt.Sprint("tag:t", i) || rec.Number != uint64(i+3) {
			t.Fatalf("%+v, %v", rec, err)
		}
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestLockCommands(t *testing.T) {
	s, _, _, stop := start(t)
	stop()
	populate(t, s.data)
	s, _, _, stop, _ = startedIn(t, filepath.Dir(s.data))
	defer stop()
	made := decode[struct {
		Lock    lockJSON
		Holders int
	}](t, s.ok("lock", "create", "--node", "laptop", "--reason", "stolen", "--ttl", "2h", "--json"))
	if made.Lock.Kind != "node" || made.Lock.Name != "laptop" || made.Lock.Nodes != 1 || made.Lock.Expires == "" || made.Holders != 0 {
		t.Errorf("%+v", made)
	}
	if out := s.ok("lock", "create", "--user", "ann@example.com"); !strings.Contains(out, "1 machine, until `lock delete l") {
		t.Error(out)
	}
	if out := s.ok("lock", "create", "--tag", "tag:nobody"); !strings.Contains(out, "0 machines") {
		t.Error(out)
	}
	if out := s.ok("node", "show", "laptop"); !strings.Contains(out, "locked") || !strings.Contains(out, made.Lock.ID+", about node laptop, since ") ||
		!strings.Contains(out, "stolen") {
		t.Error(out)
	}
	if b := decode[node](t, s.ok("node", "show", "laptop", "--json")).Barring; b == nil || b.Reason != "stolen" || b.At == "" || b.Ends == "" || b.By == "" {
		t.Errorf("%+v", b)
	}
	if l := decode[struct{ Locks []lockJSON }](t, s.ok("lock", "list", "--json")).Locks; len(l) != 3 {
		t.Errorf("%+v", l)
	}
	if out := s.ok("lock", "list"); !strings.Contains(out, "node laptop") || !strings.Contains(out, "\n    why  stolen") || !strings.Contains(out, "deleted") {
		t.Error(out)
	}
	if out := s.ok("lock", "delete", made.Lock.ID); !strings.Contains(out, "0 machines trusted again") || !strings.Contains(out, "1 machine of it still locked by other locks") {
		t.Error(out)
	}
	s.no("lock is not known", "lock", "delete", made.Lock.ID)
	s.no("nothing to lock", "lock", "create")
	s.no("a lock applies to one thing", "lock", "create", "--node", "laptop", "--tag", "tag:a")
	s.no("want tag:NAME", "lock", "create", "--tag", "a")
	s.no("want the device key", "lock", "create", "--device", "a")
	s.no("no node", "lock", "create", "--node", "nobody")
	if got := decode[struct{ Records []auditRecord }](t, s.ok("audit", "list", "--node", "laptop", "--json")).Records; len(got) < 3 ||
		got[0].Action != audit.LockDelete || got[1].Action != audit.LockCreate || !strings.Contains(got[1].Reason, "stolen") {
		t.Errorf("%+v", got)
	}
}
