package fences

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/redoubt-mesh/redoubt/"

// arrows lists which of our packages the packages below a directory may import, besides those below the same directory. The
// longest matching directory applies.
//
//	cmd/redoubt ─────────► agent ───────► netstack ──► acl/filter ─┐
//	cmd/redoubt-coordinator ─► coordinator ──► acl ────────────────┴──► proto
var arrows = map[string][]string{
	"proto":                   {},
	"acl":                     {"proto"},
	"acl/packet":              {"proto"},
	"acl/filter":              {"acl/packet", "proto"},
	"netstack":                {"acl/filter", "acl/packet", "proto"},
	"agent":                   {"netstack", "acl/filter", "acl/packet", "proto"},
	"coordinator":             {"acl", "proto"},
	"cmd/settings":            {},
	"cmd/usage":               {},
	"cmd/redoubt":             {"agent", "proto", "cmd/settings", "cmd/usage"},
	"cmd/redoubt-coordinator": {"coordinator", "netstack/relay", "acl", "proto", "cmd/settings", "cmd/usage"},
	"scripts":                 {"agent", "coordinator", "netstack", "acl", "proto"},
}

// only lists the directories that may import an external module, for modules that are confined to some.
var only = map[string][]string{
	"golang.zx2c4.com/wireguard/wgctrl": {"agent", "cmd/redoubt"},
	"golang.zx2c4.com/wireguard":        {"netstack", "scripts"},
	"github.com/vishvananda/":           {"netstack/osnet", "scripts"},
	"github.com/google/nftables":        {"netstack/osnet", "scripts"},
	"filippo.io/age":                    {"coordinator/issuer"},
	"go.etcd.io/bbolt":                  {"coordinator/store"},
	"github.com/google/go-tpm":          {"agent/device", "coordinator/attest"},
	"github.com/tailscale/hujson":       {"acl", "cmd/settings"},
	"github.com/spf13/":                 {"cmd", "scripts"},
	"charm.land/":                       {"cmd", "scripts"},
	"testing":                           {"scripts", "netstack/wg/wgtest", "coordinator/store/storetest"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// below reports whether path is folder or in it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func belowAny(path string, folders []string) bool {
	for _, f := range folders {
		if below(path, f) {
			return true
		}
	}
	return false
}

// room returns the directory whose arrows apply to path.
func room(path string) string {
	best := ""
	for folder := range arrows {
		if below(path, folder) && len(folder) > len(best) {
			best = folder
		}
	}
	return best
}

// forbidden returns why from must not import to, or "".
func forbidden(from, to string) string {
	if to, ok := strings.CutPrefix(to, module); ok {
		home := room(from)
		switch {
		case home == "":
			return "stands in no folder of the design"
		case below(to, home) && room(to) == home, belowAny(to, arrows[home]):
			return ""
		}
		return "is not an arrow of the design"
	}
	for prefix, folders := range only {
		if (to == prefix || strings.HasPrefix(to, strings.TrimSuffix(prefix, "/")+"/")) && !belowAny(from, folders) {
			if prefix == "golang.zx2c4.com/wireguard" && strings.HasPrefix(to, prefix+"/wgctrl") {
				continue
			}
			if prefix == "testing" && to != "testing" {
				continue
			}
			return "may be imported only below " + strings.Join(folders, ", ")
		}
	}
	return ""
}

func TestArrows(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages: the test looks at the wrong place", len(all))
	}
	for _, p := range all {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, to := range p.Imports {
			if why := forbidden(from, to); why != "" {
				t.Errorf("%s -> %s: %s", from, strings.TrimPrefix(to, module), why)
			}
		}
	}
}

func TestArrowsThatAreNotDrawn(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"agent/control", "coordinator/enroll"},
		{"coordinator", "agent"},
		{"coordinator", "netstack/bind"},
		{"acl/compile", "netstack/path"},
		{"acl/filter", "acl"},
		{"proto/wire", "acl"},
		{"cmd/redoubt", "coordinator"},
		{"netstack/tun", "agent"},
		{"proto", "agent"},
	} {
		if forbidden(c.from, module+c.to) == "" {
			t.Errorf("%s -> %s passes the fence", c.from, c.to)
		}
	}
	for _, c := range []struct{ from, to string }{
		{"acl/filter", "golang.zx2c4.com/wireguard/device"},
		{"agent", "github.com/spf13/cobra"},
		{"coordinator/directory", "go.etcd.io/bbolt"},
		{"agent/machine", "testing"},
	} {
		if forbidden(c.from, c.to) == "" {
			t.Errorf("%s -> %s passes the fence", c.from, c.to)
		}
	}
}

func TestNamesThatSayNothing(t *testing.T) {
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(strings.TrimPrefix(p.ImportPath, module), "/") {
			switch part {
			case "util", "utils", "common", "helper", "helpers", "misc", "base":
				t.Errorf("%s: %q is not a noun that a package owns", p.ImportPath, part)
			}
		}
	}
}
