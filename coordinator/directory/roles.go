package directory

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// MaxUsers is the maximum number of users with roles.
const MaxUsers = 100_000

// roleNames are the existing roles, as policies name them after autogroup:, sorted.
var roleNames = []string{"admin", "auditor", "billing-admin", "it-admin", "network-admin", "owner"}

// UserRoles holds a user's roles in the mesh. Values are shared and never change.
type UserRoles struct {
	User  string   // login name
	Roles []string // sorted, at least one
}

// Roles returns a user's roles in the mesh, by login name, sorted.
func (s *Snapshot) Roles(login string) []string {
	u, ok := s.state.roles.Get(login)
	if !ok {
		return nil
	}
	return u.Roles
}

// Users yields the users who have roles, sorted by login name.
func (s *Snapshot) Users() iter.Seq[*UserRoles] { return values(s.state.roles) }

// SetRoles sets a user's roles in the mesh; an empty list removes them all.
func (d *Directory) SetRoles(ctx context.Context, login string, roles []string, by string) error {
	if acl.CheckUser(login) != nil || strings.HasSuffix(login, "@") {
		return fmt.Errorf("user %.64q: want a login name such as ann@example.com: %w", login, ErrInvalid)
	}
	roles = slices.Clone(roles)
	slices.Sort(roles)
	roles = slices.Compact(roles)
	for _, r := range roles {
		if !slices.Contains(roleNames, r) {
			return fmt.Errorf("role %.64q: want one of %s: %w", r, strings.Join(roleNames, ", "), ErrInvalid)
		}
	}
	return d.do(ctx, func(t *tx) error {
		old, known := t.roles.Get(login)
		switch {
		case known && slices.Equal(old.Roles, roles), !known && len(roles) == 0:
			return nil
		case !known && t.roles.Len() >= MaxUsers:
			return fmt.Errorf("there are %d users with roles already: %w", MaxUsers, ErrInvalid)
		}
		op := store.Delete(rolePath(login))
		drop(&t.roles, login)
		said := "none"
		if len(roles) > 0 {
			var err error
			if op, err = putRecord(rolePath(login), roleRecord{version: v1, User: login, Roles: roles}); err != nil {
				return err
			}
			put(&t.roles, login, &UserRoles{User: login, Roles: roles})
			said = strings.Join(roles, ", ")
		}
		t.writes = append(t.writes, op)
		t.recordOf(login, by, audit.RolesSet, login, "", said)
		for id := range members(t.users, login) {
			t.nodes = append(t.nodes, id)
		}
		return nil
	})
}
