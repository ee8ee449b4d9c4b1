package directory

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// childDir is the environment variable that makes a copy of the test run as the coordinator to be killed.
const childDir = "REDOUBT_TEST_DIRECTORY_CHILD"

// childMain enrols 50 machines at once with a token each and, in between, renews, revokes, deletes, and sets facts, roles and
// policies. It prints a line on standard output for everything acknowledged.
func childMain(dir string) {
	if err := child(dir); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(dir string) error {
	ctx := context.Background()
	s, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()})
	if err != nil {
		return err
	}
	if _, err := Ensure(ctx, s, Plan{V4: netip.MustParsePrefix("10.9.0.0/21")}, rand.Reader, time.Now()); err != nil {
		return err
	}
	d, err := Open(ctx, s, Config{Clock: time.Now, Rand: rand.Reader, Issue: issue, Signer: signer})
	if err != nil {
		return err
	}
	fmt.Println("version", d.Snapshot().Version())
	var wait sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wait.Go(func() { errs[i] = childEnroll(ctx, d, i) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

func childEnroll(ctx context.Context, d *Directory, i int) error {
	token, err1 := key.NewToken(rand.Reader)
	device, err2 := key.NewDevice(rand.Reader)
	node, err3 := key.NewNode(rand.Reader)
	next, err4 := key.NewNode(rand.Reader)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if _, err := d.CreateToken(ctx, TokenSpec{Public: token.Public(), TTL: time.Hour}); err != nil {
		return err
	}
	n, err := d.Enroll(ctx, EnrollRequest{
		Token: token.Public(), Device: device.Device(), Key: node.Public(), Hostname: "host", Level: cert.LevelToken,
	})
	if err != nil {
		return err
	}
	fmt.Println("node", n.ID, n.Addrs.V4, n.Name, hex.EncodeToString(n.Device.Bytes()), n.Token, d.Snapshot().Version())
	switch i % 5 {
	case 1:
		if n, err = d.Renew(ctx, Renewal{ID: n.ID, Key: next.Public(), Ticket: n.NextTicket()}); err == nil {
			fmt.Println("sequence", n.ID, n.Certificate.Sequence)
		}
	case 2:
		if _, err = d.RevokeNode(ctx, n.ID, "", "child"); err == nil {
			fmt.Println("revoked", n.ID)
		}
	case 3:
		if err = d.DeleteNode(ctx, n.ID, "child"); err == nil {
			fmt.Println("deleted", n.ID)
		}
	case 4:
		err = childPolicy(ctx, d, n)
	}
	return err
}

// childPolicy sets facts and roles that policies use, and a policy.
func childPolicy(ctx context.Context, d *Directory, n *Node) error {
	if _, err := d.SetFact(ctx, n.ID, "custom:tier", n.Name, time.Hour, "child"); err != nil {
		return err
	}
	fmt.Println("fact", n.ID)
	if err := d.SetRoles(ctx, n.Name+"@example.com", []string{"admin"}, "child"); err != nil {
		return err
	}
	fmt.Println("role", n.ID)
	p, err := d.ChangePolicy(ctx, PolicyChange{Source: n.Name, Comment: n.ID.String(), By: "child"})
	if err != nil {
		return err
	}
	fmt.Println("policy", n.ID, p.Number)
	return nil
}

// told holds what children reported as acknowledged.
type told struct {
	nodes   map[proto.NodeID][]string // the rest of the line after the id
	revoked map[proto.NodeID]bool
	deleted map[proto.NodeID]bool
	facts   map[proto.NodeID]bool
	roles   map[proto.NodeID]bool
	policy  map[uint64]proto.NodeID // by number: the node it was applied for
	version proto.Version
}

func (w *told) line(t *testing.T, line string) {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] == "error" {
		t.Fatalf("child says %q", line)
	}
	if f[0] == "version" {
		v, err := proto.ParseVersion(f[1])
		if err != nil || !w.version.Less(v) {
			t.Fatalf("a coordinator began with version %q, one before it had %v", f[1], w.version)
		}
		w.version = v
		return
	}
	id, err := proto.ParseNodeID(f[1])
	if err != nil {
		t.Fatalf("child says %q", line)
	}
	switch f[0] {
	case "node":
		w.nodes[id] = f[2:]
		if v, err := proto.ParseVersion(f[6]); err == nil && w.version.Less(v) {
			w.version = v
		}
	case "revoked":
		w.revoked[id] = true
	case "deleted":
		w.deleted[id] = true
	case "fact":
		w.facts[id] = true
	case "role":
		w.roles[id] = true
	case "policy":
		number, err := strconv.ParseUint(f[2], 10, 64)
		if other, ok := w.policy[number]; err != nil || ok {
			t.Fatalf("child says %q, the policy is for %v already", line, other)
		}
		w.policy[number] = id
	}
}

// run runs a child until it has printed a number of lines, kills it, and reads the rest of its output.
func (w *told) run(t *testing.T, dir string, lines int) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for n := 1; in.Scan(); n++ {
		w.line(t, in.Text())
		if n == lines {
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = c.Wait() // killed, or finished just before
}

func TestKilledInTheMiddleOf50Enrolments(t *testing.T) {
	dir := t.TempDir()
	w := &told{
		nodes: map[proto.NodeID][]string{}, revoked: map[proto.NodeID]bool{}, deleted: map[proto.NodeID]bool{},
		facts: map[proto.NodeID]bool{}, roles: map[proto.NodeID]bool{}, policy: map[uint64]proto.NodeID{},
	}
	for range 8 {
		w.run(t, dir, 1+mathrand.IntN(70))
		s, err := bolt.Open(dir, bolt.Options{Migrations: Migrations()})
		if err != nil {
			t.Fatal(err)
		}
		// Opening fails if two nodes share a name or an address.
		d, err := Open(t.Context(), s, Config{Clock: time.Now, Rand: rand.Reader, Issue: issue, Signer: signer})
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, d.Snapshot())
		w.checkPolicies(t, d)
		verifyBook(t, d)
		w.version = d.Snapshot().Version()
		d.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.nodes) == 0 {
		t.Error("no child came far enough to enrol anybody")
	}
	t.Logf("%d enrolments were acknowledged", len(w.nodes))
}

// check checks that everything acknowledged is present, and that no address was assigned twice.
func (w *told) check(t *testing.T, s *Snapshot) {
	t.Helper()
	given := map[string]proto.NodeID{}
	for id, f := range w.nodes {
		if other, ok := given[f[0]]; ok {
			t.Errorf("address %s was given to %v and %v", f[0], other, id)
		}
		given[f[0]] = id
		n, ok := s.Lookup(id)
		if w.deleted[id] {
			if ok {
				t.Errorf("node %v was deleted and is there", id)
			}
			continue
		}
		if !ok {
			if v4 := netip.MustParseAddr(f[0]); !s.rests(v4) {
				t.Errorf("node %v was acknowledged and is lost", id)
			}
			continue // deleted, and killed before that was acknowledged
		}
		if n.Addrs.V4.String() != f[0] || n.Name != f[1] || hex.EncodeToString(n.Device.Bytes()) != f[2] || n.Token != f[3] {
			t.Errorf("node %v is %+v, acknowledged was %v", id, n, f)
		}
		if w.revoked[id] && n.Revoked == nil {
			t.Errorf("the revocation of node %v is lost", id)
		}
		if w.facts[id] && s.Traits(id).Facts["custom:tier"] != n.Name {
			t.Errorf("the fact of node %v is lost: %v", id, s.Traits(id).Facts)
		}
		if w.roles[id] && len(s.Roles(n.Name+"@example.com")) != 1 {
			t.Errorf("the role set with node %v is lost", id)
		}
		if tok, ok := s.TokenByID(n.Token); !ok || tok.SpentBy != id {
			t.Errorf("the token of node %v is not spent", id)
		}
		if _, ok := s.state.held.Get(heldDevice(n.Device)); !ok {
			t.Errorf("the device key of node %v could be taken by another", id)
		}
	}
	for n := range s.Nodes() {
		if other, ok := given[n.Addrs.V4.String()]; ok && other != n.ID {
			t.Errorf("address %s was given to %v and %v", n.Addrs.V4, other, n.ID)
		}
	}
}

// checkPolicies checks that every acknowledged version is stored, and that none is newer than the one in force.
func (w *told) checkPolicies(t *testing.T, d *Directory) {
	t.Helper()
	for number, id := range w.policy {
		p, err := d.PolicyVersion(t.Context(), number)
		if err != nil || p.Comment != id.String() || p.Number > d.Snapshot().Policy().Number {
			t.Errorf("policy %d of node %v is %+v, %v; in force is %+v", number, id, p, err, d.Snapshot().Policy())
		}
	}
}

func (s *Snapshot) rests(v4 netip.Addr) bool {
	_, ok := s.state.freed.Get(addrKey(v4))
	return ok
}
