package posture

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
)

var errBroken = errors.New("broken")

// machine is a host with the given files, by path, and programs' output, by command line.
func machine(files, programs map[string]string) Host {
	m := fstest.MapFS{}
	for name, text := range files {
		m[strings.TrimPrefix(name, "/")] = &fstest.MapFile{Data: []byte(text), ModTime: noon}
	}
	return Host{
		Files: m, Now: func() time.Time { return noon },
		Filters: func() ([]osnet.FilterChain, error) { return nil, nil },
		Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
			line := strings.Join(append([]string{name}, args...), " ")
			out, ok := programs[line]
			if !ok {
				return nil, fs.ErrNotExist
			}
			if text, failed := strings.CutPrefix(out, "!"); failed {
				return []byte(text), errBroken
			}
			return []byte(out), nil
		},
	}
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// values returns the values of readings by name, without the prefix. An unknown value is "-".
func values(rs []Reading) string {
	var out []string
	for _, r := range rs {
		v := r.Value
		if v == "" {
			v = "-"
			if r.Note == "" {
				v = "without a word"
			}
		}
		out = append(out, strings.TrimPrefix(r.Name, "posture:")+"="+v)
	}
	return strings.Join(out, " ")
}

func recorded(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	whenever = osnet.FilterRule{Conditional: true, Verdict: osnet.VerdictAccept}
	reject   = osnet.FilterRule{Verdict: osnet.VerdictDrop}
	accept   = osnet.FilterRule{Verdict: osnet.VerdictAccept}
)

func jump(to string) osnet.FilterRule {
	return osnet.FilterRule{Verdict: osnet.VerdictJump, Target: to}
}

func leave(to string) osnet.FilterRule {
	return osnet.FilterRule{Verdict: osnet.VerdictGoto, Target: to}
}

func input(family string, drops bool, rules ...osnet.FilterRule) osnet.FilterChain {
	return osnet.FilterChain{Family: family, Table: "filter", Name: "input", Input: true, Drops: drops, Rules: rules}
}

func chainOf(name string, rules ...osnet.FilterRule) osnet.FilterChain {
	return osnet.FilterChain{Family: "inet", Table: "filter", Name: name, Rules: rules}
}

func TestFirewallIsADefault(t *testing.T) {
	for name, c := range map[string]struct {
		chains []osnet.FilterChain
		v6     bool
		want   string
	}{
		"nothing":                              {nil, false, "false"},
		"policy drop (nftables.conf)":          {[]osnet.FilterChain{input("inet", true, whenever)}, true, "true"},
		"last rule rejects (firewalld)":        {[]osnet.FilterChain{input("inet", false, whenever, whenever, reject)}, true, "true"},
		"IPv4 only, and there is no other":     {[]osnet.FilterChain{input("ip", true)}, false, "true"},
		"IPv4 only, and the host has IPv6":     {[]osnet.FilterChain{input("ip", true)}, true, "false"},
		"one for each family":                  {[]osnet.FilterChain{input("ip", true), input("ip6", true)}, true, "true"},
		"IPv6 only":                            {[]osnet.FilterChain{input("ip6", true)}, true, "false"},
		"some ports are closed":                {[]osnet.FilterChain{input("inet", false, osnet.FilterRule{Conditional: true, Verdict: osnet.VerdictDrop})}, false, "false"},
		"everything is let in before":          {[]osnet.FilterChain{input("inet", true, accept, reject)}, false, "false"},
		"policy drop, and the chain returns":   {[]osnet.FilterChain{input("inet", true, osnet.FilterRule{Verdict: osnet.VerdictReturn})}, false, "true"},
		"jumps to a chain that drops":          {[]osnet.FilterChain{input("inet", false, jump("a")), chainOf("a", jump("b")), chainOf("b", reject)}, false, "true"},
		"jumps to a chain that accepts":        {[]osnet.FilterChain{input("inet", true, jump("a")), chainOf("a", accept)}, false, "false"},
		"jumps to one that comes back":         {[]osnet.FilterChain{input("inet", false, jump("a"), reject), chainOf("a", whenever)}, false, "true"},
		"leaves for one that does not":         {[]osnet.FilterChain{input("inet", false, leave("a"), reject), chainOf("a")}, false, "false"},
		"jumps in a circle":                    {[]osnet.FilterChain{input("inet", false, jump("a")), chainOf("a", jump("a"))}, false, "false"},
		"jumps to nowhere":                     {[]osnet.FilterChain{input("inet", true, jump("x"))}, false, "true"},
		"drops only if one says so (docker)":   {[]osnet.FilterChain{chainOf("DOCKER", reject), chainOf("FORWARD", reject)}, false, "false"},
		"one lets everything in, another none": {[]osnet.FilterChain{input("inet", false, accept), input("ip", true)}, false, "true"},
	} {
		if got := judgeFirewall(c.chains, c.v6); got.Value != c.want {
			t.Errorf("%s: %s (%s), want %s", name, got.Value, got.Note, c.want)
		}
	}
}

// TestRecordedFirewalls uses what osnet.Filters read of real firewalls: both admit some packets, and nothing else.
func TestRecordedFirewalls(t *testing.T) {
	for name, want := range map[string]string{"filters-ufw.json": "ip filter INPUT", "filters-firewalld.json": "inet firewalld filter_INPUT"} {
		var chains []osnet.FilterChain
		for in := json.NewDecoder(strings.NewReader(recorded(t, name))); in.More(); {
			var c osnet.FilterChain
			if err := in.Decode(&c); err != nil {
				t.Fatal(err)
			}
			chains = append(chains, c)
		}
		if got := judgeFirewall(chains, true); got.Value != "true" || got.Note != want {
			t.Errorf("%s: %+v", name, got)
		}
		// A rule in front that accepts everything opens the firewall.
		for i := range chains {
			if chains[i].Input {
				chains[i].Rules = slices.Insert(chains[i].Rules, 0, accept)
			}
		}
		if got := judgeFirewall(chains, true); got.Value != "false" {
			t.Errorf("%s, open: %+v", name, got)
		}
	}
}

// TestChainsWithoutEnd checks that chains that jump to one another again and again are followed for a limited time, and then
// do not count as a firewall.
func TestChainsWithoutEnd(t *testing.T) {
	chains := []osnet.FilterChain{input("inet", true, jump("0"))}
	for i := range maxJumps {
		c := chainOf(strconv.Itoa(i))
		for range 50 {
			c.Rules = append(c.Rules, jump(strconv.Itoa(i+1)))
		}
		chains = append(chains, c)
	}
	if got := judgeFirewall(chains, false); got.Value != "false" {
		t.Errorf("%+v", got)
	}
}

func TestFirewallOfAHost(t *testing.T) {
	legacy := map[string]string{"/proc/net/ip_tables_names": "filter\nnat\n"}
	for name, c := range map[string]struct {
		files    map[string]string
		programs map[string]string
		broken   bool
		want     string
	}{
		"nothing at all":            {want: "false"},
		"nftables cannot be asked":  {broken: true, want: "-"},
		"ufw, by legacy iptables":   {legacy, map[string]string{"iptables-legacy-save -t filter": recorded(t, "iptables-ufw.txt")}, false, "true"},
		"ufw of Debian 12":          {legacy, map[string]string{"iptables-legacy-save -t filter": recorded(t, "iptables-ufw-debian12.txt")}, false, "true"},
		"a program judges":          {legacy, map[string]string{"iptables-legacy-save -t filter": "*filter\n:INPUT DROP [0:0]\n-A INPUT -j NFQUEUE --queue-num 0\n"}, false, "false"},
		"older systems' iptables":   {legacy, map[string]string{"iptables-save -t filter": recorded(t, "iptables-ufw.txt")}, false, "true"},
		"docker alone":              {legacy, map[string]string{"iptables-legacy-save -t filter": recorded(t, "iptables-docker.txt")}, false, "false"},
		"Red Hat's default":         {legacy, map[string]string{"iptables-save -t filter": recorded(t, "iptables-rhel.txt")}, false, "true"},
		"iptables cannot be asked":  {legacy, nil, false, "-"},
		"iptables for other things": {map[string]string{"/proc/net/ip_tables_names": "nat\n"}, nil, false, "false"},
		"IPv6 is open": {
			map[string]string{"/proc/net/ip_tables_names": "filter\n", "/proc/net/if_inet6": "20010db8000000000000000000000001 02 40 00 80     eth0\n"},
			map[string]string{"iptables-legacy-save -t filter": recorded(t, "iptables-ufw.txt")},
			false, "false",
		},
		"IPv6 is the mesh's, the host's own and the link's": {
			map[string]string{"/proc/net/ip_tables_names": "filter\n", "/proc/net/if_inet6": "" +
				"00000000000000000000000000000001 01 80 10 80       lo\n" +
				"fe800000000000000000000000000001 02 40 20 80     eth0\n" +
				"fdb1af8f593a00000000000064780001 03 80 00 80 redoubt0\n"},
			map[string]string{"iptables-legacy-save -t filter": recorded(t, "iptables-ufw.txt")},
			false, "true",
		},
	} {
		h := machine(c.files, c.programs)
		if c.broken {
			h.Filters = func() ([]osnet.FilterChain, error) { return nil, errBroken }
		}
		if got := values(firewall("redoubt0")(t.Context(), h)); got != "firewall="+c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzIptables(f *testing.F) {
	for _, name := range []string{"iptables-ufw.txt", "iptables-docker.txt", "iptables-rhel.txt"} {
		f.Add(recorded(f, name))
	}
	f.Fuzz(func(t *testing.T, s string) {
		chains := iptablesChains([]byte(s), "ip")
		r := judgeFirewall(chains, false)
		if r.Value == "true" && !strings.Contains(s, ":INPUT") {
			t.Errorf("a firewall without a chain for what comes in: %q", s)
		}
		for _, c := range chains {
			if c.Family != "ip" || c.Table != "filter" || c.Name == "" && !strings.Contains(s, ": ") && !strings.Contains(s, ":\t") && !strings.Contains(s, `:"`) {
				t.Errorf("%+v of %q", c, s)
			}
		}
	})
}
