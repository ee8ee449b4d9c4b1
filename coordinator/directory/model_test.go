package directory

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// story is a random life of a directory, with its invariants.
type story struct {
	*rig
	rt     *rapid.T
	tokens []*Token
	all    []EnrollRequest
	freed  map[netip.Addr]time.Time // when each address was given up
	last   proto.Version
}

// TestALife performs random operations and restarts, and checks after each that the indexes agree with the nodes, that nothing
// is assigned twice, and that disk and memory agree.
func TestALife(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := &story{rig: newRigOn(t, store.NewMemory(), smallPlan), rt: rt, freed: map[netip.Addr]time.Time{}}
		defer s.Close()
		steps := map[string]func(){
			"token": s.newToken, "enroll": s.enrolSomebody, "again": s.again, "renew": s.renew, "revoke": s.revoke,
			"delete": s.deleteNode, "pass": s.pass, "endpoints": s.endpoints, "policy": s.policy,
			"fact": s.setFact, "report": s.report, "approve": s.approve, "roles": s.setRoles,
			"lock": s.lock, "unlock": s.unlock, "restart": s.restart, "crash": s.crash, "revoke token": s.revokeToken,
		}
		names := slices.Sorted(func(yield func(string) bool) {
			for n := range steps {
				if !yield(n) {
					return
				}
			}
		})
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			steps[rapid.SampledFrom(names).Draw(rt, "step")]()
			s.invariants()
		}
		s.restart()
		s.invariants()
	})
}

func (s *story) newToken() {
	s.tokens = append(s.tokens, s.token(func(spec *TokenSpec) {
		spec.Reusable = rapid.Bool().Draw(s.rt, "reusable")
		spec.Ephemeral = rapid.Bool().Draw(s.rt, "ephemeral")
		if rapid.Bool().Draw(s.rt, "user") {
			spec.Tags, spec.User = nil, "ann@example.com"
		}
	}))
}

// allowed fails the test unless err is nil or one of reasons; it reports whether err is nil.
func (s *story) allowed(err error, reasons ...error) bool {
	if err == nil {
		return true
	}
	if !slices.ContainsFunc(reasons, func(r error) bool { return errors.Is(err, r) }) {
		s.rt.Fatal(err)
	}
	return false
}

var tokenErrors = []error{ErrTokenSpent, ErrTokenExpired, ErrTokenRevoked, ErrTokenUnknown, ErrKeyUsed, ErrRevoked, ErrLocked}

func (s *story) enrolSomebody() {
	if len(s.tokens) == 0 {
		return
	}
	q := machine(s.t, rapid.SampledFrom(s.tokens).Draw(s.rt, "token"), rapid.SampledFrom([]string{"a", "b", ""}).Draw(s.rt, "hostname"))
	if len(s.all) > 0 && rapid.Bool().Draw(s.rt, "with an old key") {
		old := rapid.SampledFrom(s.all).Draw(s.rt, "old")
		if rapid.Bool().Draw(s.rt, "device key") {
			q.Device = old.Device
		} else {
			q.Key = old.Key
		}
		if _, err := s.Enroll(s.t.Context(), q); err == nil {
			s.rt.Fatal("a key was taken twice")
		}
		return
	}
	n, err := s.Enroll(s.t.Context(), q)
	if !s.allowed(err, tokenErrors...) {
		return
	}
	if at, ok := s.freed[n.Addrs.V4]; ok && s.clock.now().Sub(at) < ipam.Rest {
		s.rt.Fatalf("%v was given after a rest of %v", n.Addrs.V4, s.clock.now().Sub(at))
	}
	s.all = append(s.all, q)
}

func (s *story) again() {
	if len(s.all) == 0 {
		return
	}
	q := rapid.SampledFrom(s.all).Draw(s.rt, "again")
	before := s.Snapshot().Len()
	n, err := s.Enroll(s.t.Context(), q)
	if s.allowed(err, tokenErrors...) && (n.Device != q.Device || s.Snapshot().Len() != before) {
		s.rt.Fatalf("enrolled again: %+v", n)
	}
}

// some picks a node, if there is one.
func (s *story) some() (*Node, bool) {
	all := slices.Collect(s.Snapshot().Nodes())
	if len(all) == 0 {
		return nil, false
	}
	return all[rapid.IntRange(0, len(all)-1).Draw(s.rt, "node")], true
}

func (s *story) renew() {
	n, ok := s.some()
	if !ok {
		return
	}
	q := s.renewal(n, newNodeKey(s.t))
	switch rapid.IntRange(0, 9).Draw(s.rt, "how") {
	case 0:
		q.Key = n.latest()
		q.Ticket = n.ticketOf(n.Used)
	case 1:
		q.Ticket = n.ticketOf(rapid.Uint64Range(0, n.Ticket).Draw(s.rt, "ticket"))
	case 2:
		_, err := s.ReleaseNode(s.t.Context(), n.ID, "uid 0")
		s.allowed(err, ErrInvalid, ErrRevoked, ErrLocked)
		return
	}
	next, err := s.Renew(s.t.Context(), q)
	if s.allowed(err, ErrRevoked, ErrQuarantined, ErrLocked) && next.Certificate.Sequence < n.Certificate.Sequence {
		s.rt.Fatalf("certificate %d after %d", next.Certificate.Sequence, n.Certificate.Sequence)
	}
}

func (s *story) revoke() {
	if n, ok := s.some(); ok {
		_, err := s.RevokeNode(s.t.Context(), n.ID, "for the test", "uid 0")
		s.allowed(err)
	}
}

// lock locks a node by a random kind of subject, temporarily or permanently.
func (s *story) lock() {
	n, ok := s.some()
	if !ok {
		return
	}
	spec := LockSpec{Kind: rapid.SampledFrom([]string{LockNode, LockUser, LockTag, LockDevice, LockToken}).Draw(s.rt, "kind"), By: "uid 0"}
	switch spec.Kind {
	case LockNode:
		spec.Subject = n.ID.String()
	case LockUser:
		spec.Subject = "ann@example.com"
	case LockTag:
		spec.Subject = "tag:db"
	case LockDevice:
		spec.Subject = n.Device.String()
	case LockToken:
		spec.Subject = n.Token
	}
	if rapid.Bool().Draw(s.rt, "for a time") {
		spec.TTL = 30 * time.Minute
	}
	_, _, err := s.CreateLock(s.t.Context(), spec)
	s.allowed(err, ErrTokenUnknown)
}

func (s *story) unlock() {
	all := slices.Collect(s.Snapshot().Locks())
	if len(all) == 0 {
		return
	}
	_, _, err := s.DeleteLock(s.t.Context(), all[rapid.IntRange(0, len(all)-1).Draw(s.rt, "lock")].ID, "uid 0")
	s.allowed(err, ErrLockUnknown)
}

// held reports whether a lock applies to a node, by a linear search.
func (s *story) held(snap *Snapshot, n *Node) bool {
	for l := range snap.Locks() {
		switch {
		case !l.Expires.IsZero() && !l.Expires.After(snap.Now()):
			s.rt.Fatalf("lock %+v is there at %v", l, snap.Now())
		case l.Kind == LockNode && l.Subject == n.ID.String(), l.Kind == LockUser && l.Subject == n.User.Name,
			l.Kind == LockTag && slices.Contains(n.Tags, l.Subject), l.Kind == LockDevice && l.Subject == n.Device.String(),
			l.Kind == LockToken && l.Subject == n.Token:
			return true
		}
	}
	return false
}

func (s *story) deleteNode() {
	if n, ok := s.some(); ok {
		s.allowed(s.DeleteNode(s.t.Context(), n.ID, "uid 0"))
		s.freed[n.Addrs.V4] = s.clock.now()
	}
}

func (s *story) revokeToken() {
	if len(s.tokens) > 0 {
		_, err := s.RevokeToken(s.t.Context(), rapid.SampledFrom(s.tokens).Draw(s.rt, "token").ID, "uid 0")
		s.allowed(err, ErrTokenUnknown)
	}
}

func (s *story) pass() {
	s.clock.pass(rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, 10 * 24 * time.Hour}).Draw(s.rt, "time"))
	before := s.Snapshot()
	gone, err := s.Expire(s.t.Context())
	s.allowed(err)
	for _, id := range gone {
		n, _ := before.Lookup(id)
		s.freed[n.Addrs.V4] = s.clock.now()
	}
}

func (s *story) endpoints() {
	if n, ok := s.some(); ok {
		port := rapid.Uint16Range(1, 3).Draw(s.rt, "port")
		s.allowed(s.SetReach(s.t.Context(), n.ID, proto.Reach{Endpoints: []proto.Endpoint{endpoint(fmt.Sprint("192.0.2.1:", port))}}), ErrRevoked, ErrLocked)
	}
}

func (s *story) policy() {
	_, err := s.SetPolicy(s.t.Context(), rapid.StringMatching(`[ab]?`).Draw(s.rt, "source"), 0, "uid 0")
	s.allowed(err)
}

func (s *story) setFact() {
	n, ok := s.some()
	if !ok {
		return
	}
	name := rapid.SampledFrom([]string{"custom:a", "custom:b"}).Draw(s.rt, "fact")
	if rapid.Bool().Draw(s.rt, "unset") {
		_, err := s.UnsetFact(s.t.Context(), n.ID, name, "uid 0")
		s.allowed(err, ErrRevoked, ErrLocked, ErrInvalid)
		return
	}
	ttl := rapid.SampledFrom([]time.Duration{0, time.Minute, 3 * time.Hour}).Draw(s.rt, "ttl")
	_, err := s.SetFact(s.t.Context(), n.ID, name, "x", ttl, "uid 0")
	s.allowed(err, ErrRevoked, ErrLocked)
}

var someRoutes = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("192.0.2.0/24")}

func (s *story) report() {
	if n, ok := s.some(); ok {
		routes := someRoutes[rapid.IntRange(0, 3).Draw(s.rt, "routes"):]
		s.allowed(s.Report(s.t.Context(), n.ID, Reported{OS: rapid.SampledFrom([]string{"", "linux"}).Draw(s.rt, "os"), Routes: routes}), ErrRevoked, ErrLocked)
	}
}

func (s *story) approve() {
	if n, ok := s.some(); ok {
		_, err := s.ApproveRoutes(s.t.Context(), n.ID, someRoutes[rapid.IntRange(0, 3).Draw(s.rt, "routes"):], "uid 0")
		s.allowed(err, ErrRevoked, ErrLocked)
	}
}

func (s *story) setRoles() {
	s.allowed(s.SetRoles(s.t.Context(), "ann@example.com", rapid.SampledFrom([][]string{nil, {"admin"}, {"owner", "admin"}}).Draw(s.rt, "roles"), "uid 0"))
}

// restart checks that reading from disk restores what was in memory.
func (s *story) restart() {
	s.Close()
	s.crash()
}

func (s *story) crash() {
	before := s.Snapshot()
	s.open()
	if diff := cmp.Diff(lasting(before), lasting(s.Snapshot()), opaque); diff != "" {
		s.rt.Fatalf("after a restart: %s", diff)
	}
}

// lasting returns the parts of a snapshot that are on disk.
func lasting(s *Snapshot) map[string]any {
	freed := map[string]time.Time{}
	for k, v := range s.state.freed.all() {
		freed[fmt.Sprintf("%x", k)] = v
	}
	held := map[string]proto.NodeID{}
	for k, v := range s.state.held.all() {
		held[fmt.Sprintf("%x", k)] = v
	}
	facts := map[proto.NodeID]Traits{}
	for n := range s.Nodes() {
		facts[n.ID] = s.Known(n.ID)
	}
	return map[string]any{
		"facts": facts, "roles": slices.Collect(s.Users()),
		"mesh": s.mesh.ID, "nodes": slices.Collect(s.Nodes()), "tokens": slices.Collect(s.Tokens()), "policy": s.Policy(),
		"freed": freed, "held": held, "locks": slices.Collect(s.Locks()),
	}
}

func (s *story) invariants() {
	snap := s.Snapshot()
	if snap.Version().Less(s.last) {
		s.rt.Fatalf("version %v after %v", snap.Version(), s.last)
	}
	s.last = snap.Version()
	names, addrs, keys := map[string]bool{}, map[netip.Addr]bool{}, map[key.NodePublic]bool{}
	trusted, users, tags, ephemeral, current, peers, routers := 0, 0, 0, 0, 0, 0, 0
	for n := range snap.Nodes() {
		if names[n.Name] || addrs[n.Addrs.V4] || addrs[n.Addrs.V6] || keys[n.Key] || n.Validate() != nil {
			s.rt.Fatalf("node %+v shares something with another, or is not valid", n)
		}
		names[n.Name], addrs[n.Addrs.V4], addrs[n.Addrs.V6], keys[n.Key] = true, true, true, true
		if byName, ok := snap.Named(n.Name); !ok || byName != n {
			s.rt.Fatalf("by its name %s is %+v", n.Name, byName)
		}
		if byDevice, ok := snap.Device(n.Device); !ok || byDevice != n {
			s.rt.Fatalf("by its device key %s is %+v", n.Name, byDevice)
		}
		if id, ok := snap.ByAddr(n.Addrs.V6); ok != snap.state.seen(n) || ok && id != n.ID {
			s.rt.Fatalf("by its address %s is %v", n.Name, id)
		}
		if n.Ephemeral {
			ephemeral++
		}
		s.sees(snap, n)
		if (n.Lock != nil) != s.held(snap, n) || snap.Trusted(n.ID) != (!n.Apart() && n.Lock == nil) {
			s.rt.Fatalf("node %+v is held by %+v", n, n.Lock)
		}
		var peer *proto.Peer
		for _, p := range snap.Peers([]proto.NodeID{n.ID}) {
			peer = p
		}
		shown := peer != nil
		if shown {
			peers++
		}
		if shown != (!n.Barred() && !snap.Lapsed(n.ID)) ||
			shown && (peer.ID != n.ID || !bytes.Equal(peer.Certificate, n.Certificate.DER) || !slices.Equal(peer.Endpoints, snap.Reach(n.ID).Endpoints)) {
			s.rt.Fatalf("others see of %s %+v", n.Name, peer)
		}
		if snap.state.seen(n) {
			trusted++
			if seen := snap.Traits(n.ID); len(seen.Advertised)+len(seen.Approved) > 0 {
				routers++
			}
			if !snap.Lapsed(n.ID) {
				current++
			}
			tags += len(n.Tags)
			if !n.User.IsZero() {
				users++
			}
		}
	}
	got := []int{
		snap.state.trusted.Len(), snap.state.users.Len(), snap.state.tags.Len(), snap.state.ephemeral.Len(),
		snap.state.names.Len(), snap.state.addrs.Len(), snap.state.devices.Len(),
		snap.state.ends.Len(), snap.state.peers.Len(), snap.state.rests.Len(), snap.state.tokenEnds.Len(),
		snap.state.routers.Len(),
	}
	want := []int{trusted, users, tags, ephemeral, len(names), len(addrs), len(names), current, peers, snap.state.freed.Len(), snap.state.tokens.Len(), routers}
	if !slices.Equal(got, want) {
		s.rt.Fatalf("indexes have %v entries, want %v", got, want)
	}
}

// sees checks that policies see the same of a node as people do, and nothing that has expired.
func (s *story) sees(snap *Snapshot, n *Node) {
	known, seen := snap.Known(n.ID), snap.Traits(n.ID)
	if !snap.state.seen(n) {
		if seen.Facts != nil || seen.Advertised != nil || seen.Approved != nil {
			s.rt.Fatalf("policies see of a node that is kept apart %+v", seen)
		}
		return
	}
	if len(known.Facts) != len(seen.Facts) || !slices.Equal(known.Advertised, seen.Advertised) || !slices.Equal(known.Approved, seen.Approved) {
		s.rt.Fatalf("policies see %+v, people %+v", seen, known)
	}
	for _, f := range known.Facts {
		if seen.Facts[f.Name] != f.Value || f.over(snap.Now()) {
			s.rt.Fatalf("at %v policies see %s = %q, known is %+v", snap.Now(), f.Name, seen.Facts[f.Name], f)
		}
	}
}
