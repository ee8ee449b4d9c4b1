package settings

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

type values struct {
	data string
	life time.Duration
	urls []string
	json bool
	ttl  time.Duration
	ran  string
}

func program(v *values, env map[string]string) *cobra.Command {
	root := &cobra.Command{Use: "p", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().StringVar(&v.data, "data", "/default", "")
	serve := &cobra.Command{Use: "serve", RunE: func(*cobra.Command, []string) error { v.ran = "serve"; return nil }}
	serve.Flags().DurationVar(&v.life, "cert-lifetime", time.Hour, "")
	serve.Flags().StringArrayVar(&v.urls, "url", nil, "")
	token := &cobra.Command{Use: "token", RunE: func(*cobra.Command, []string) error { v.ran = "token"; return nil }}
	token.Flags().BoolVar(&v.json, "json", false, "")
	token.Flags().DurationVar(&v.ttl, "ttl", time.Minute, "")
	root.AddCommand(serve, token)
	Bind(root, func(name string) (string, bool) { s, ok := env[name]; return s, ok })
	return root
}

func run(t *testing.T, file string, env map[string]string, args ...string) (values, error) {
	t.Helper()
	var v values
	root := program(&v, env)
	if file != "" {
		path := filepath.Join(t.TempDir(), "c.hujson")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	root.SetArgs(args)
	err := root.Execute()
	return v, err
}

func TestPrecedence(t *testing.T) {
	file := `{ // a comment
		"data": "/file", "cert-lifetime": "2h", "url": ["https://a", "https://b"],
		"ttl": "5m", "json": true,
	}`
	env := map[string]string{"REDOUBT_CERT_LIFETIME": "3h", "REDOUBT_URL": "https://x,https://y"}
	for _, c := range []struct {
		name string
		file string
		env  map[string]string
		args []string
		want values
	}{
		{"defaults", "", nil, []string{"serve"}, values{data: "/default", life: time.Hour, ttl: time.Minute, ran: "serve"}},
		{"file", file, nil, []string{"serve"}, values{data: "/file", life: 2 * time.Hour, urls: []string{"https://a", "https://b"}, json: true, ttl: 5 * time.Minute, ran: "serve"}},
		{"environment beats file", file, env, []string{"serve"}, values{data: "/file", life: 3 * time.Hour, urls: []string{"https://x", "https://y"}, json: true, ttl: 5 * time.Minute, ran: "serve"}},
		{"flag beats both", file, env, []string{"serve", "--cert-lifetime", "4h", "--url", "https://z", "--data=/flag"}, values{data: "/flag", life: 4 * time.Hour, urls: []string{"https://z"}, json: true, ttl: 5 * time.Minute, ran: "serve"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := run(t, c.file, c.env, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(values{})); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown key", "{\n  \"cert-lifetme\": \"1h\"}", `c.hujson:2:3: unknown key "cert-lifetme" (did you mean "cert-lifetime"?)`},
		{"wrong type", `{"cert-lifetime": true}`, `c.hujson:1:2: "cert-lifetime": want a duration`},
		{"text for a boolean", `{"json": "true"}`, `want a bool`},
		{"bad duration", `{"cert-lifetime": "soon"}`, `time: invalid duration`},
		{"list for one", `{"data": ["a"]}`, `takes one value`},
		{"nested", `{"data": {"a": 1}}`, `c.hujson:1:10: "data": want a text`},
		{"null", `{"data": null}`, `null is no value`},
		{"twice", `{"data": "a", "data": "b"}`, `is there twice`},
		{"no object", `[]`, `want an object`},
		{"broken", `{"data": `, `c.hujson:1:10: `},
		{"broken further down", "{\n  \"data\" \"a\"}", `c.hujson:2:10: `},
		{"for another command", `{"ttl": "x"}`, `c.hujson:1:2: "ttl"`},
		{"huge", `{"data": "` + strings.Repeat("x", maxFile) + `"}`, `not a file with settings`},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := run(t, c.file, nil, "serve")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if v.ran != "" {
				t.Error("the command ran all the same")
			}
		})
	}
	if _, err := run(t, "", map[string]string{"REDOUBT_CERT_LIFETIME": "x"}, "serve"); err == nil || !strings.Contains(err.Error(), "REDOUBT_CERT_LIFETIME") {
		t.Errorf("bad variable: %v", err)
	}
	if _, err := run(t, "", map[string]string{"REDOUBT_CONFIG": "/nowhere/c"}, "serve"); err == nil {
		t.Error("a missing file passed")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"data": "a", "url": ["b", 1, true], /* c */ }`))
	f.Add([]byte(`{"data": {}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parse("f", strings.NewReader(string(b)))
		if err != nil {
			return
		}
		for _, e := range entries {
			if !e.list && len(e.values) != 1 || e.line < 1 || e.column < 1 {
				t.Errorf("entry %+v", e)
			}
		}
	})
}
