package posture

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// Guard is an endpoint protection product (EDR).
type Guard struct {
	Name    string // as policies name it
	Program string // path
	Unit    string // the systemd unit that runs it
}

// guards are the known products. The agent may be configured with more.
var guards = []Guard{
	{"carbonblack", "/opt/carbonblack/psc/bin/cbagentd", "cbagentd.service"},
	{"cortex", "/opt/traps/bin/pmd", "traps_pmd.service"},
	{"crowdstrike", "/opt/CrowdStrike/falcon-sensor", "falcon-sensor.service"},
	{"defender", "/opt/microsoft/mdatp/sbin/wdavdaemon", "mdatp.service"},
	{"elastic", "/opt/Elastic/Endpoint/elastic-endpoint", "ElasticEndpoint.service"},
	{"sentinelone", "/opt/sentinelone/bin/sentinelone-agent", "sentinelone.service"},
	{"sophos", "/opt/sophos-spl/base/bin/sophos_managementagent", "sophos-spl.service"},
	{"trendmicro", "/opt/ds_agent/ds_agent", "ds_agent.service"},
	{"wazuh", "/var/ossec/bin/wazuh-agentd", "wazuh-agent.service"},
}

// ParseGuard parses NAME=PROGRAM or NAME=PROGRAM:UNIT. Without UNIT, the unit is named like the program.
func ParseGuard(s string) (Guard, error) {
	name, program, ok := strings.Cut(s, "=")
	program, unit, named := strings.Cut(program, ":")
	if !named {
		unit = path.Base(program) + ".service"
	}
	if !ok || name == "" || name != clean(name) || !path.IsAbs(program) || program != path.Clean(program) ||
		strings.ContainsAny(unit, "/") || !strings.HasSuffix(unit, ".service") {
		return Guard{}, fmt.Errorf("%.80q: want NAME=/PATH/OF/PROGRAM, followed by :UNIT.service if the unit is not named like the program", s)
	}
	return Guard{name, program, unit}, nil
}

// edr reports a product that is installed and running, and the hash of its program. If several are running, the first in the
// list counts.
func edr(known []Guard) func(context.Context, Host) []Reading {
	hashes := &hashes{}
	return func(ctx context.Context, h Host) []Reading {
		why := "no known product is installed"
		for _, g := range known {
			if !h.exists(strings.TrimPrefix(g.Program, "/")) {
				continue
			}
			if !h.runs(g.Unit) {
				why = g.Name + " is installed, and " + g.Unit + " does not run"
				continue
			}
			sum, err := hashes.of(ctx, h, g.Program)
			if err != nil {
				why = err.Error()
				continue
			}
			return []Reading{{Name: fact.EDR, Value: g.Name, Note: g.Unit}, {Name: fact.EDRHash, Value: sum, Note: g.Program}}
		}
		return []Reading{unknown(fact.EDR, why), unknown(fact.EDRHash, why)}
	}
}

// runs reports whether a systemd unit has a process, by its control group.
func (h Host) runs(unit string) bool {
	for line := range strings.Lines(h.text("sys/fs/cgroup/system.slice/" + unit + "/cgroup.events")) {
		if strings.TrimSpace(line) == "populated 1" {
			return true
		}
	}
	return h.text("sys/fs/cgroup/systemd/system.slice/"+unit+"/cgroup.procs") != ""
}

// maxProgram is the largest program that is hashed.
const maxProgram = 1 << 30

// hashes remembers the hash of a program that has not changed since.
type hashes struct {
	name string
	size int64
	at   time.Time
	sum  string
}

// of returns the SHA-256 of a program. A program with the same size and time as before is not read again.
func (c *hashes) of(ctx context.Context, h Host, program string) (string, error) {
	name := strings.TrimPrefix(program, "/")
	f, err := h.Files.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	s, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !s.Mode().IsRegular() || s.Size() > maxProgram:
		return "", fmt.Errorf("%s is no program, or has more than %d bytes", program, maxProgram)
	case c.name == program && c.size == s.Size() && c.at.Equal(s.ModTime()):
		return c.sum, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(whileWanted{ctx, f}, maxProgram)); err != nil {
		return "", err
	}
	*c = hashes{program, s.Size(), s.ModTime(), hex.EncodeToString(sum.Sum(nil))}
	return c.sum, nil
}

// whileWanted reads until the context ends.
type whileWanted struct {
	ctx context.Context //nolint:containedctx // it lives for one reading
	r   io.Reader
}

func (w whileWanted) Read(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(b)
}

// agentHash returns the collector of the hash of this agent's program.
func agentHash(program string) func(context.Context, Host) []Reading {
	hashes := &hashes{}
	return func(ctx context.Context, h Host) []Reading {
		sum, err := hashes.of(ctx, h, program)
		if err != nil {
			return []Reading{unknown(fact.AgentHash, err.Error())}
		}
		return []Reading{{Name: fact.AgentHash, Value: sum, Note: "SHA-256"}}
	}
}

// sshRootLogin reports how root may log in by SSH, as sshd interprets its configuration.
func sshRootLogin(ctx context.Context, h Host) []Reading {
	b, err := h.Run(ctx, "sshd", "-T", "-C", "user=root,host=localhost,addr=192.0.2.1")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Reading{known(fact.SSHRootLogin, "no", "there is no sshd")}
	case err != nil:
		return []Reading{unknown(fact.SSHRootLogin, err.Error()+": `sshd -T` says why")}
	}
	if v := permitRootLogin(b); v != "" {
		return []Reading{known(fact.SSHRootLogin, v, "")}
	}
	return []Reading{unknown(fact.SSHRootLogin, "sshd says something unexpected")}
}

// permitRootLogin parses the output of `sshd -T`, which prints one of the values by its former name.
func permitRootLogin(b []byte) string {
	for _, f := range fields(b, 2) {
		if f[0] != "permitrootlogin" {
			continue
		}
		switch f[1] {
		case "yes", "no", "prohibit-password", "forced-commands-only":
			return f[1]
		case "without-password":
			return "prohibit-password"
		}
	}
	return ""
}

// osquery returns the version of osquery, if it is running.
func osquery(ctx context.Context, h Host) []Reading {
	if !h.runs("osqueryd.service") {
		return []Reading{unknown(fact.OsqueryVersion, "osqueryd.service does not run")}
	}
	b, err := h.Run(ctx, "osqueryd", "--version")
	if err != nil {
		return []Reading{unknown(fact.OsqueryVersion, err.Error())}
	}
	return []Reading{known(fact.OsqueryVersion, osqueryVersion(b), "")}
}

// osqueryVersion parses "osqueryd version 5.12.1".
func osqueryVersion(b []byte) string {
	for _, f := range fields(b, 3) {
		if f[1] == "version" {
			return f[2]
		}
	}
	return ""
}
