package acl

import "slices"

// Renamed returns the policy with the login names of its users mapped by login. The texts of selectors, which messages show,
// stay as they were written.
func (p *Policy) Renamed(login func(name string) string) *Policy {
	one := func(s Selector) Selector {
		if s.Kind == User {
			s.Name = login(s.Name)
		}
		return s
	}
	all := func(in []Selector) []Selector {
		out := slices.Clone(in)
		for i := range out {
			out[i] = one(out[i])
		}
		return out
	}
	out := *p
	out.Groups = make(map[string]Group, len(p.Groups))
	for name, g := range p.Groups {
		g.Members = all(g.Members)
		out.Groups[name] = g
	}
	out.TagOwners = make(map[string]TagOwner, len(p.TagOwners))
	for name, t := range p.TagOwners {
		t.Owners = all(t.Owners)
		out.TagOwners[name] = t
	}
	out.Rules = slices.Clone(p.Rules)
	for i := range out.Rules {
		r := &out.Rules[i]
		r.Src, r.Dst = all(r.Src), slices.Clone(r.Dst)
		for n := range r.Dst {
			r.Dst[n].Selector = one(r.Dst[n].Selector)
		}
	}
	out.Approvers = Approvers{Routes: slices.Clone(p.Approvers.Routes), ExitNode: all(p.Approvers.ExitNode)}
	for i := range out.Approvers.Routes {
		out.Approvers.Routes[i].By = all(out.Approvers.Routes[i].By)
	}
	out.NodeAttrs = slices.Clone(p.NodeAttrs)
	for i := range out.NodeAttrs {
		out.NodeAttrs[i].Target = all(out.NodeAttrs[i].Target)
	}
	out.SSH = slices.Clone(p.SSH)
	for i := range out.SSH {
		out.SSH[i].Src, out.SSH[i].Dst = all(out.SSH[i].Src), all(out.SSH[i].Dst)
	}
	targets := func(in []Target) []Target {
		out := slices.Clone(in)
		for i := range out {
			out[i].Selector = one(out[i].Selector)
		}
		return out
	}
	out.Admission = slices.Clone(p.Admission)
	for i := range out.Admission {
		out.Admission[i].Whom = all(out.Admission[i].Whom)
	}
	out.Tests = slices.Clone(p.Tests)
	for i := range out.Tests {
		t := &out.Tests[i]
		t.Src, t.Accept, t.Deny = one(t.Src), targets(t.Accept), targets(t.Deny)
	}
	out.SSHTests = slices.Clone(p.SSHTests)
	for i := range out.SSHTests {
		t := &out.SSHTests[i]
		t.Src, t.Dst = one(t.Src), all(t.Dst)
	}
	return &out
}
