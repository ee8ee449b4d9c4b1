package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRootCommands(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	first := decode[rootsJSON](t, s.ok("root", "list", "--json"))
	if len(first.Roots) != 1 || !first.Roots[0].KeyHere || first.Roots[0].State != rootIssues || len(first.Warnings) != 0 {
		t.Errorf("%+v", first)
	}
	s.no("there is one root", "root", "retire")
	code := decode[struct{ Token token }](t, s.ok("token", "create", "--user", "ann@example.com", "--json"))

	if out := s.ok("root", "rotate"); !strings.Contains(out, "There is a new root") || !strings.Contains(out, "join code "+code.Token.ID) {
		t.Error(out)
	}
	if out := s.ok("root", "list"); strings.Count(out, "trusted") != 1 || !strings.Contains(out, "0 machines and 1 join code still depend on the old root") {
		t.Error(out)
	}
	both := decode[rootsJSON](t, s.ok("root", "list", "--json"))
	if len(both.Roots) != 2 || both.Roots[1].Fingerprint != first.Roots[0].Fingerprint || len(both.Tokens) != 1 {
		t.Errorf("%+v", both)
	}
	s.no("the root before this one is still trusted", "root", "rotate")
	s.no("join code "+code.Token.ID, "root", "retire")
	if out := s.ok("root", "retire", "--force"); !strings.Contains(out, "join code "+code.Token.ID+" is void") {
		t.Error(out)
	}
	if after := decode[rootsJSON](t, s.ok("root", "list", "--json")); len(after.Roots) != 1 || after.Roots[0].Fingerprint != both.Roots[0].Fingerprint {
		t.Errorf("%+v", after)
	}
	out := s.ok("audit", "list")
	for _, want := range []string{"root.rotate", "root.retire", "intermediate.rep"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %s in\n%s", want, out)
		}
	}
}

func TestRootKeyCommands(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	dir := t.TempDir()
	key, request := filepath.Join(dir, "root.age"), filepath.Join(dir, "request.pem")
	s.no("confirm that with --offline", "root", "export", key)
	s.no("no terminal", "root", "export", "--offline", key)
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.no("want 12 or more", "root", "export", "--offline", key, "--passphrase-file", short)
	s.no("already exists", "root", "export", "--offline", short, "--passphrase-file", short)
	if _, err := os.Stat(filepath.Join(s.data, "pki", "root.key")); err != nil {
		t.Errorf("the root's key after it was not exported: %v", err)
	}
	s.no("no request that waits", "root", "install", short)
	s.ok("root", "request", request)
	if info, err := os.Stat(request); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	s.no("not a request", "root", "sign", "--key", short, "--passphrase-file", short, short)
	s.no("not a file written by `root export --offline`", "root", "sign", "--key", short, "--passphrase-file", short, request)
	s.no("not the answer", "root", "install", request)
	if out := s.ok("root", "list"); !strings.Contains(out, "the next one is requested") {
		t.Error(out)
	}
}
