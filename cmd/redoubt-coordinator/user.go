package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func (p *program) user() *cobra.Command {
	cmd := &cobra.Command{Use: "user", Short: "Manage users"}
	role := &cobra.Command{Use: "role", Short: "Manage the roles of users, for autogroup:admin and the like"}
	role.AddCommand(p.roleSet(), p.roleUnset(), p.roleList())
	cmd.AddCommand(role)
	return cmd
}

// userRoles is a user and their roles, as JSON shows it.
type userRoles struct {
	User  string   `json:"user"`
	Roles []string `json:"roles"`
}

func (p *program) roleSet() *cobra.Command {
	return &cobra.Command{
		Use: "set USER ROLE...", Short: "Set the roles of a user", Args: cobra.MinimumNArgs(2),
		Long: `Gives a user, by login name, exactly these roles: owner, admin, it-admin,
network-admin, billing-admin, auditor.`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.setRoles(cmd, args[0], args[1:]) },
	}
}

func (p *program) roleUnset() *cobra.Command {
	return &cobra.Command{
		Use: "unset USER", Short: "Remove all roles from a user", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return p.setRoles(cmd, args[0], nil) },
	}
}

func (p *program) setRoles(cmd *cobra.Command, user string, roles []string) error {
	q := &redoubtv1.SetRolesRequest{User: &redoubtv1.UserRoles{User: user, Roles: roles}}
	if _, err := p.client().SetRoles(cmd.Context(), q); err != nil {
		return p.explain(err)
	}
	if p.json {
		return p.print(userRoles{user, append([]string{}, roles...)})
	}
	if len(roles) == 0 {
		fmt.Fprintf(p.out, "%s has no role\n", user)
		return nil
	}
	fmt.Fprintf(p.out, "%s is %s\n", user, strings.Join(roles, ", "))
	return nil
}

func (p *program) roleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the users who have roles", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().ListRoles(cmd.Context(), &redoubtv1.ListRolesRequest{})
			if err != nil {
				return p.explain(err)
			}
			list := make([]userRoles, 0, len(a.GetUsers()))
			var rows [][]string
			for _, u := range a.GetUsers() {
				list = append(list, userRoles{u.GetUser(), u.GetRoles()})
				rows = append(rows, []string{u.GetUser(), strings.Join(u.GetRoles(), ", ")})
			}
			if p.json {
				return p.print(map[string]any{"users": list})
			}
			if len(rows) == 0 {
				fmt.Fprintln(p.err, "# no user has a role; set one with `user role set USER ROLE`")
				return nil
			}
			p.table(roleColumns, rows)
			return nil
		},
	}
}
