package distribute

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// lifetime is the lifetime of certificates in these tests.
const lifetime = time.Hour

// world is a directory with a hub, and a clock that tests advance.
type world struct {
	t      fataler
	random *rand.ChaCha8
	dir    *directory.Directory
	hub    *Hub

	mu    sync.Mutex
	clock func() time.Time
	now   time.Time

	byToken map[string]key.TokenPublic
	nodes   []proto.NodeID
}

type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Errorf(string, ...any)
}

// newWorld returns a world with the given clock, or with its own if that is nil.
func newWorld(t fataler, seed uint64, start func(Config) *Hub, clock func() time.Time) *world {
	t.Helper()
	w := &world{t: t, now: time.Unix(1_800_000_000, 0), byToken: make(map[string]key.TokenPublic)}
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], seed)
	w.random = rand.NewChaCha8(s)
	if clock == nil {
		clock = func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }
	}
	w.clock = clock
	st := store.NewMemory()
	ctx := background
	if _, err := directory.Ensure(ctx, st, directory.Plan{}, w.random, w.now); err != nil {
		t.Fatal(err)
	}
	issue := func(n cert.Node, now time.Time) (cert.Node, error) {
		n.NotBefore, n.NotAfter = now, now.Add(lifetime)
		n.Raw, n.Serial = fmt.Appendf(nil, "certificate %d of %s", n.Sequence, n.ID), fmt.Sprintf("%x", n.Sequence)
		return n, nil
	}
	var err error
	signer := audit.NewSigner("mesh", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if w.dir, err = directory.Open(ctx, st, directory.Config{Clock: clock, Rand: w.random, Issue: issue, Signer: signer, Ages: policy.NewPrograms(proto.Outage{}, slog.New(slog.DiscardHandler))}); err != nil {
		t.Fatal(err)
	}
	w.hub = start(Config{
		Directory: w.dir, Clock: clock, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		Compile: func(p *directory.Policy) *compile.Program {
			program, err := policy.Load(p, w.dir.Snapshot().Mesh())
			if err != nil {
				t.Errorf("policy: %v", err)
			}
			return program
		},
		Authorities: func() [][]byte { return [][]byte{[]byte("intermediate")} },
		Outage:      proto.Outage{Grace: 8 * time.Hour},
	})
	return w
}

func (w *world) close() {
	w.hub.Close()
	w.dir.Close()
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// enrol adds a node of a user, or with a tag.
func (w *world) enrol(who string) proto.NodeID {
	w.t.Helper()
	ctx := background
	public, ok := w.byToken[who]
	if !ok {
		secret, err := key.NewToken(w.random)
		if err != nil {
			w.t.Fatal(err)
		}
		spec := directory.TokenSpec{Public: secret.Public(), Reusable: true, TTL: 300 * 24 * time.Hour, By: "test"}
		if bytes.HasPrefix([]byte(who), []byte("tag:")) {
			spec.Tags = []string{who}
		} else {
			spec.User = who
		}
		if _, err := w.dir.CreateToken(ctx, spec); err != nil {
			w.t.Fatal(err)
		}
		public = secret.Public()
		w.byToken[who] = public
	}
	device, err := key.NewDevice(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	node, err := key.NewNode(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := w.dir.Enroll(ctx, directory.EnrollRequest{Token: public, Device: device.Device(), Key: node.Public(), Hostname: "host", Level: cert.LevelToken})
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes = append(w.nodes, n.ID)
	return n.ID
}

func (w *world) renew(id proto.NodeID) {
	w.t.Helper()
	n, ok := w.dir.Snapshot().Lookup(id)
	if !ok {
		return
	}
	k, err := key.NewNode(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.dir.Renew(background, directory.Renewal{ID: id, Key: k.Public(), Ticket: n.NextTicket()}); err != nil && !n.Barred() {
		w.t.Fatal(err)
	}
}

func (w *world) setPolicy(source string) {
	w.t.Helper()
	if _, err := w.dir.SetPolicy(background, source, 0, "test"); err != nil {
		w.t.Fatal(err)
	}
}

// client is a node as the hub sees it: it applies what it is sent, strictly.
type client struct {
	w       *world
	id      proto.NodeID
	session *Session
	nm      *proto.Netmap
	wakes   chan struct{}

	mu    sync.Mutex
	ended *refusal.Refusal
	full  int
	delta int
}

func (c *client) Wake() {
	select {
	case c.wakes <- struct{}{}:
	default:
	}
}

func (c *client) End(r *refusal.Refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = r
}

func (c *client) over() *refusal.Refusal {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (w *world) client(id proto.NodeID) *client {
	return &client{w: w, id: id, wakes: make(chan struct{}, 1)}
}

func (c *client) attach() error {
	c.mu.Lock()
	c.ended = nil
	c.mu.Unlock()
	var have proto.Version
	if c.nm != nil {
		have = c.nm.Version
	}
	var err error
	c.session, err = c.w.hub.Attach(c.id, able, have, c)
	return err
}

// drain reads and applies everything that there is to send.
func (c *client) drain() {
	c.w.t.Helper()
	for {
		u, ok := c.session.Next()
		if !ok {
			return
		}
		if u.Netmap != nil {
			c.full++
			if err := u.Netmap.Validate(); err != nil {
				c.w.t.Fatalf("a netmap that no agent takes: %v", err)
			}
			if c.nm != nil && u.Netmap.Version.Less(c.nm.Version) {
				c.w.t.Fatalf("%v after %v", u.Netmap.Version, c.nm.Version)
			}
			c.nm = u.Netmap
			continue
		}
		c.delta++
		nm, err := c.nm.Apply(u.Delta)
		if err != nil {
			c.w.t.Fatalf("a delta that no agent takes: %v", err)
		}
		c.nm = nm
	}
}

func (c *client) ack() { c.session.Applied(c.nm.Version) }

var background = context.Background()

// able lists the features of current agents.
var able = proto.Features()

func timeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}
