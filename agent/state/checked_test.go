package state

import (
	"crypto/rand"
	"os"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func TestChecked(t *testing.T) {
	d, s := filled(t)
	good := []cert.Signature{{1}, {2}, {3}}
	if err := d.SaveChecked(s.node.Node, good); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load()
	if err != nil || len(got.Checked) != len(good) {
		t.Fatalf("%d signatures, want %d; %v", len(got.Checked), len(good), err)
	}
	for _, g := range good {
		if _, ok := got.Checked[g]; !ok {
			t.Errorf("%x is lost", g)
		}
	}
	if err := d.Forget(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.path(fileChecked)); err == nil {
		t.Error("it outlives the membership")
	}
}

// TestCheckedByOthers checks that nothing written without the node key is believed, and that damage costs only time.
func TestCheckedByOthers(t *testing.T) {
	d, s := filled(t)
	stranger, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	none := func(what string) {
		t.Helper()
		if got, err := d.Load(); err != nil || len(got.Checked) != 0 {
			t.Errorf("%s: %d signatures are believed, %v", what, len(got.Checked), err)
		}
	}
	none("no file")
	if err := d.SaveChecked(stranger, []cert.Signature{{1}}); err != nil {
		t.Fatal(err)
	}
	none("under another key")
	// The certificate does not name a key that an intruder puts beside this node's.
	if err := d.SaveNodes([]key.NodePrivate{s.node.Node, stranger}); err != nil {
		t.Fatal(err)
	}
	none("under a key that was put beside ours")
	if err := d.SaveChecked(s.node.Node, []cert.Signature{{1}}); err != nil {
		t.Fatal(err)
	}
	payload, err := d.read(fileChecked, limitChecked)
	if err != nil {
		t.Fatal(err)
	}
	for i := range payload {
		changed := []byte(string(payload))
		changed[i] ^= 1
		if err := d.write(fileChecked, changed); err != nil {
			t.Fatal(err)
		}
		none("changed, with a checksum that fits")
	}
	if err := d.write(fileChecked, append(payload, make([]byte, 32)...)); err != nil {
		t.Fatal(err)
	}
	none("with one more")
	if err := os.WriteFile(d.path(fileChecked), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	none("rubbish")
	if err := d.SaveChecked(key.NodePrivate{}, nil); err == nil {
		t.Error("it was written under no key")
	}
}

func FuzzChecked(f *testing.F) {
	node, err := key.ParseNodePrivate([]byte(strings.Repeat("k", key.NodeSize)))
	if err != nil {
		f.Fatal(err)
	}
	list := make([]byte, 64)
	mac, err := checkedMAC(node, list[:32])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(mac, list[:32]...))
	f.Add(append(mac, list...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseChecked(node, b)
		if got == nil {
			return
		}
		want, err := checkedMAC(node, b[32:])
		if err != nil || string(want) != string(b[:32]) || len(got) > len(b)/32-1 {
			t.Errorf("%x is believed: %d signatures, %v", b, len(got), err)
		}
	})
}
