package state

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

func opened(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, noon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// filled returns a directory with something in every file.
func filled(t *testing.T) (*Dir, *script) {
	t.Helper()
	d := opened(t, filepath.Join(t.TempDir(), "state"))
	s := newScript(newDisk())
	s.dir = d
	for _, step := range s.steps()[:9] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	relay, err := relaymsg.ParseSecret(bytes.Repeat([]byte{7}, relaymsg.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.SavePort(51820), d.SaveRelay(relay)); err != nil {
		t.Fatal(err)
	}
	return d, s
}

func TestRoundTrip(t *testing.T) {
	d, s := filled(t)
	secret, err := key.NewToken(strings.NewReader(strings.Repeat("s", 32)))
	if err != nil {
		t.Fatal(err)
	}
	floors := Floors{
		MeshTime: noon, LastContact: noon.Add(-time.Minute), Version: proto.Version{Epoch: 2, N: 7},
		Sequences: map[proto.NodeID]Sequence{5: {Seen: 9, Until: noon}},
	}
	wanted := Wanted{
		Up: true, Hostname: "web", Revoked: &Revocation{At: noon, Message: "by ann"},
		Routing: Routing{
			Advertise: []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("fd00:33::/64")}, PlainSource: true,
			Accept: true, Exit: "gate", ExitLAN: true,
		},
	}
	for _, err := range []error{
		d.SaveFloors(floors), d.SaveWanted(wanted), d.SaveJoin(Join{URLs: []string{"https://a", "https://b"}, Root: [32]byte{7}, Secret: secret}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Repeat([]byte{7}, relaymsg.KeySize); !bytes.Equal(got.Relay.Expose(), want) {
		t.Error("another relay's key came back")
	}
	if diff := cmp.Diff(floors, got.Floors); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(wanted, got.Wanted, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got.Join.Secret.Public() != secret.Public() || len(got.Join.URLs) != 2 || got.Join.Root != [32]byte{7} {
		t.Errorf("join: %+v", got.Join)
	}
	if got.Port != 51820 {
		t.Errorf("port %d", got.Port)
	}
	if got.Self.Node.ID != s.node.ID || got.Netmap.Version.N != 3 {
		t.Errorf("node %v, netmap %v", got.Self.Node.ID, got.Netmap.Version)
	}
	if err := d.Forget(); err != nil {
		t.Fatal(err)
	}
	got, err = d.Load()
	if err != nil || got.Self != nil || !got.Device.IsZero() || got.Netmap != nil || got.Wanted.Revoked == nil {
		t.Errorf("after forgetting: %+v, %v", got, err)
	}
}

func TestModes(t *testing.T) {
	d, _ := filled(t)
	info, err := os.Stat(d.Path())
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(d.Path())
	if err != nil || len(entries) < 8 {
		t.Fatalf("%d files, %v", len(entries), err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if err := os.Chmod(d.path(fileDevice), 0o644); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if _, err := d.Load(); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "mode 0644") {
		t.Errorf("a key that everyone can read: %v", err)
	}
}

// TestCorruptFiles checks that, whatever happened to a file, it is rejected by name, and nothing else is returned.
func TestCorruptFiles(t *testing.T) {
	spoil := map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"empty":     func([]byte) []byte { return nil },
		"one bit":   func(b []byte) []byte { b[len(b)*3/4] ^= 4; return b },
		"garbage":   func([]byte) []byte { return []byte("garbage\n") },
		"longer":    func(b []byte) []byte { return append(b, b...) },
	}
	for _, name := range []string{fileDevice, fileNode, fileJoin, fileIdentity, fileNetmap, fileFloors, fileWanted, filePort, fileRelay} {
		for how, f := range spoil {
			t.Run(name+" "+how, func(t *testing.T) {
				d, _ := filled(t)
				b, err := os.ReadFile(d.path(name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(d.path(name), f(b), 0o600); err != nil {
					t.Fatal(err)
				}
				s, err := d.Load()
				var corrupt *CorruptError
				if !errors.As(err, &corrupt) || s != nil {
					t.Fatalf("%v, %+v", err, s)
				}
				if corrupt.Path != d.path(name) || corrupt.Remedy == "" {
					t.Errorf("%+v does not say which file, or what to do", corrupt)
				}
			})
		}
	}
}

// TestRoutingOnDiskIsChecked checks that settings that no command could have written count as damage.
func TestRoutingOnDiskIsChecked(t *testing.T) {
	d, _ := filled(t)
	if err := d.SaveWanted(Wanted{Routing: Routing{Advertise: []netip.Prefix{Everything4}}}); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if _, err := d.Load(); !errors.As(err, &corrupt) || corrupt.Path != d.path(fileWanted) {
		t.Errorf("%v", err)
	}
}

func TestCorruptLog(t *testing.T) {
	d, _ := filled(t)
	whole, err := os.ReadFile(d.path(fileLog))
	if err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	all, _, err := records(whole)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for i := range recordHeader + len(all[0]) {
		b := append([]byte(nil), whole...)
		b[i] ^= 1
		if err := os.WriteFile(d.path(fileLog), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(); !errors.As(err, &corrupt) {
			t.Fatalf("a bit of byte %d is wrong, and that is what came of it: %v", i, err)
		}
	}
	if err := os.WriteFile(d.path(fileLog), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.path(fileNetmap)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(); !errors.As(err, &corrupt) {
		t.Errorf("a log without its snapshot: %v", err)
	}
}

// TestMixedUp checks that files of different nodes do not make a node together.
func TestMixedUp(t *testing.T) {
	for _, name := range []string{fileDevice, fileNode, fileIdentity} {
		a, _ := filled(t)
		b, _ := filled(t)
		content, err := os.ReadFile(b.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(a.path(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		var corrupt *CorruptError
		if _, err := a.Load(); !errors.As(err, &corrupt) {
			t.Errorf("%s of another node: %v", name, err)
		}
	}
}

func TestSecondAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d := opened(t, path)
	_, err := Open(path, noon)
	var busy *InUseError
	if !errors.As(err, &busy) || !strings.Contains(err.Error(), "process ") || !strings.Contains(err.Error(), "2026-05-01T12:00:00Z") {
		t.Fatalf("a second agent: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	opened(t, path)
}

// TestLockOfTheDead checks that the lock ends with the process that holds it, however that ends.
func TestLockOfTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if os.Getenv("REDOUBT_TEST_HOLD") != "" {
		if _, err := Open(os.Getenv("REDOUBT_TEST_HOLD"), noon); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("held\n")
		select {}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLockOfTheDead$")
	cmd.Env = append(os.Environ(), "REDOUBT_TEST_HOLD="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	var busy *InUseError
	if _, err := Open(path, noon); !errors.As(err, &busy) {
		t.Errorf("held by another process: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	opened(t, path)
}

// TestNoSecretIsLeft checks that nothing in the files of an enrolled node can enrol another one.
func TestNoSecretIsLeft(t *testing.T) {
	d, _ := filled(t)
	b, err := os.ReadFile(d.path(fileJoin))
	if err != nil || strings.Contains(string(b), "Secret") {
		t.Errorf("join: %s, %v", b, err)
	}
}

func FuzzRecords(f *testing.F) {
	f.Add(appendRecord(appendRecord(nil, []byte("one")), []byte("two")))
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, log []byte) {
		payloads, good, err := records(log)
		if err != nil {
			return
		}
		var again []byte
		for _, p := range payloads {
			again = appendRecord(again, p)
		}
		if string(again) != string(log[:good]) {
			t.Errorf("%x was read as %x", log[:good], again)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add(seal("wanted", []byte(`{"Up":true}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if payload, err := open("wanted", b); err == nil && string(seal("wanted", payload)) != string(b) {
			t.Errorf("%q was opened, and sealed it is another", b)
		}
	})
}

func TestFlowsAreTakenOnce(t *testing.T) {
	d, _ := filled(t)
	if b, err := d.TakeFlows(); b != nil || err != nil {
		t.Errorf("nothing was kept: %q, %v", b, err)
	}
	if err := d.SaveFlows([]byte("flows")); err != nil {
		t.Fatal(err)
	}
	if b, err := d.TakeFlows(); string(b) != "flows" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := d.TakeFlows(); b != nil || err != nil {
		t.Errorf("taken twice: %q, %v", b, err)
	}
	if err := os.WriteFile(d.path(fileFlows), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.TakeFlows(); err == nil {
		t.Error("rubbish was taken for flows")
	}
	if _, err := os.Stat(d.path(fileFlows)); err == nil {
		t.Error("rubbish stays for the next start")
	}
}
