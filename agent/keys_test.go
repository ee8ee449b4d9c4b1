package agent

import (
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// reopen loads the keys from the disk, as a new process would.
func reopen(t *testing.T, path string) (*keys, func()) {
	t.Helper()
	dir, err := state.Open(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	k := &keys{dir: dir, home: &home{}}
	if err := k.open(loaded); err != nil {
		t.Fatal(err)
	}
	return k, func() { dir.Close() }
}

func naming(nodes ...key.NodePrivate) *identity.Self {
	self := &identity.Self{Node: &cert.Node{}}
	for _, n := range nodes {
		self.Node.Keys = append(self.Node.Keys, cert.NodeKey{Public: n.Public()})
	}
	return self
}

func TestNodeKeysOnTheDisk(t *testing.T) {
	path := t.TempDir()
	k, end := reopen(t, path)
	if err := k.make(); err != nil {
		t.Fatal(err)
	}
	a := k.node()
	next := func(self *identity.Self) key.NodePrivate {
		t.Helper()
		n, err := k.next(self)
		if err != nil {
			t.Fatal(err)
		}
		end()
		k, end = reopen(t, path) // killed before the coordinator heard of it, or before the reply came
		if again, err := k.next(self); err != nil || again.Public() != n.Public() {
			t.Fatalf("after a restart it asks for another key (%v)", err)
		}
		return n
	}
	turn := func(to key.NodePrivate) {
		t.Helper()
		got, err := k.turn(to.Public())
		if err != nil || got.Public() != to.Public() {
			t.Fatal(err)
		}
		end()
		if k, end = reopen(t, path); k.node().Public() != to.Public() {
			t.Fatal("after a restart it uses another key")
		}
	}
	b := next(naming(a))
	c := next(naming(a, b))
	if len(k.nodes) != 3 {
		t.Errorf("%d keys", len(k.nodes))
	}
	turn(b)
	if len(k.nodes) != 2 || k.nodes[1].Public() != c.Public() {
		t.Errorf("%d keys: the one that was asked for is gone, or the one before is not", len(k.nodes))
	}
	// It missed its turn: the certificate does not name the key in use.
	d := next(naming(b, c))
	turn(c)
	if len(k.nodes) != 2 || k.nodes[1].Public() != d.Public() {
		t.Errorf("%d keys", len(k.nodes))
	}
	e := next(naming(c, d))
	turn(e) // as on a machine whose keys the coordinator does not know
	if len(k.nodes) != 1 {
		t.Errorf("%d keys", len(k.nodes))
	}
	if got, err := k.turn(a.Public()); err == nil || !got.IsZero() {
		t.Error("a key that is gone was put to use")
	}
	f := next(naming(e))
	if err := k.drop(naming(e)); err != nil {
		t.Fatal(err)
	}
	if again := next(naming(e)); again.Public() == f.Public() || k.node().Public() != e.Public() {
		t.Error("it asks again for a key that is not to be had")
	}
	end()
}
