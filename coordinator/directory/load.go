package directory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// loadState reads all records into indexes. A record that cannot be read stops the coordinator: the name, address or key of an
// overlooked record could be given to someone else.
func loadState(ctx context.Context, st store.Store, now time.Time) (state, error) {
	s := newState()
	loaders := []struct {
		prefix string
		add    func(*state, store.Entry) error
	}{
		{lockPrefix, addLock},
		{nodePrefix, addNode},
		{devicePrefix, addHeld},
		{nodeKeyPrefix, addHeld},
		{tokenPrefix, addToken},
		{candidatePrefix, addCandidate},
		{freedPrefix, addFreed},
		{rolePrefix, addRoles},
		{traitsPrefix, func(s *state, e store.Entry) error { return addTraits(s, e, now) }},
	}
	for _, l := range loaders {
		entries, _, err := st.List(ctx, l.prefix)
		if err != nil {
			return state{}, fmt.Errorf("read %s: %w", l.prefix, err)
		}
		for _, e := range entries {
			if err := l.add(&s, e); err != nil {
				return state{}, err
			}
		}
	}
	if err := loadKeys(ctx, st, &s); err != nil {
		return state{}, err
	}
	return s, loadPolicy(ctx, st, &s)
}

func addNode(s *state, e store.Entry) error {
	n, err := parseNode(e)
	if err != nil {
		return err
	}
	if err := n.Validate(); err != nil {
		return fmt.Errorf("record %s: %w", e.Key, err)
	}
	if other, ok := s.names.Get(n.Name); ok {
		return fmt.Errorf("record %s: has the name %s of node %s", e.Key, n.Name, other)
	}
	for _, a := range n.Addrs.Slice() {
		if other, ok := s.addrs.Get(addrKey(a)); ok {
			return fmt.Errorf("record %s: has the address %v of node %s", e.Key, a, other)
		}
	}
	s.setNode(n)
	return nil
}

func addHeld(s *state, e store.Entry) error {
	r, err := parse[heldRecord](e)
	if err != nil {
		return err
	}
	k, err := heldKey(e.Key)
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Key, err)
	}
	put(&s.held, k, r.Node)
	if !r.Until.IsZero() {
		p, err := key.ParseNodePublic([]byte(k[1:]))
		if err != nil {
			return fmt.Errorf("record %s: %w", e.Key, err)
		}
		s.give(p, r.Until)
	}
	return nil
}

func addToken(s *state, e store.Entry) error {
	t, err := parseToken(e)
	if err != nil {
		return err
	}
	s.setToken(t)
	return nil
}

func addFreed(s *state, e store.Entry) error {
	r, err := parse[freedRecord](e)
	if err != nil {
		return err
	}
	a, err := netip.ParseAddr(strings.TrimPrefix(e.Key, freedPrefix))
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Key, err)
	}
	s.rest(a, r.Until)
	return nil
}

func addRoles(s *state, e store.Entry) error {
	r, err := parse[roleRecord](e)
	if err != nil {
		return err
	}
	if rolePath(r.User) != e.Key || len(r.Roles) == 0 {
		return fmt.Errorf("record %s: holds %d roles of %s", e.Key, len(r.Roles), r.User)
	}
	put(&s.roles, r.User, &UserRoles{User: r.User, Roles: r.Roles})
	return nil
}

// addTraits requires the nodes to be loaded.
func addTraits(s *state, e store.Entry, now time.Time) error {
	id, t, err := parseTraits(e)
	if err != nil {
		return err
	}
	n, ok := s.nodes.Get(id)
	if !ok {
		return fmt.Errorf("record %s: of a node that is not known", e.Key)
	}
	t.silent(now)
	before := len(t.Facts)
	if t.Facts = slices.DeleteFunc(t.Facts, func(f Fact) bool { return f.over(now) }); len(t.Facts) != before {
		put(&s.stale, id, id)
	}
	s.setTraits(n, t)
	return nil
}

// loadPolicy loads the last policy; keys sort by number. The earlier ones, of which there may be many, are not read.
func loadPolicy(ctx context.Context, st store.Store, s *state) error {
	e, err := st.Last(ctx, policyPrefix)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", policyPrefix, err)
	}
	s.policy, err = parsePolicy(e)
	return err
}
