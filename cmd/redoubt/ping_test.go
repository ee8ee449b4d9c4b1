package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// echoes returns three replies of a peer; a direct path is found after the first one.
func echoes() []*redoubtv1.PingResponse {
	echo := func(seq uint32, us uint64, path, endpoint, transport string) *redoubtv1.PingResponse {
		return &redoubtv1.PingResponse{
			PeerName: "db-1", Address: "100.64.0.2", Sequence: seq, RttUs: us, Path: path, Endpoint: endpoint, PathTransport: transport,
			PathRttUs: us - 100, PathSince: noon.UnixMilli(),
		}
	}
	first := echo(1, 41_200, "relay", "fra1", "udp")
	first.PathCause, first.PathWhy = "looking", "still looking, at its 2 addresses"
	moved := echo(0, 100, "direct", "192.0.2.2:41641", "")
	moved.Moved = true
	return []*redoubtv1.PingResponse{first, moved, echo(2, 2_300, "direct", "192.0.2.2:41641", ""), echo(3, 2_100, "direct", "192.0.2.2:41641", "")}
}

func TestPing(t *testing.T) {
	f, socket := fake(t, status())
	ping := func(args ...string) result {
		return redoubt(t, "", append([]string{"--socket", socket, "ping", "db-1"}, args...)...)
	}
	r := ping("-c", "2", "-i", "200ms")
	want := "db-1 (100.64.0.2) seq 1 200.00 ms, direct 192.0.2.2:41641\ndb-1 (100.64.0.2) seq 2 200.00 ms, direct 192.0.2.2:41641\n" +
		"2 sent, 2 answered, 0% lost\nround trip 200.00 ms min, 200.00 ms median, 200.00 ms max\npaths: direct 192.0.2.2:41641 (2)\n"
	if r.code != 0 || r.out != want {
		t.Errorf("%+v", r)
	}
	f.SetPings(echoes()...)
	r = ping()
	want = "db-1 (100.64.0.2) seq 1 41.20 ms, relay fra1 over udp (path 41.10 ms)\n" +
		"now direct via 192.0.2.2:41641 after 0.00 s, was relay fra1 over udp\n" +
		"db-1 (100.64.0.2) seq 2 2.30 ms, direct 192.0.2.2:41641 (path 2.20 ms)\n" +
		"db-1 (100.64.0.2) seq 3 2.10 ms, direct 192.0.2.2:41641 (path 2.00 ms)\n" +
		"3 sent, 3 answered, 0% lost\nround trip 2.10 ms min, 2.30 ms median, 41.20 ms max\n" +
		"paths: relay fra1 over udp (1), direct 192.0.2.2:41641 (2)\n"
	if got := regexp.MustCompile(`after \d+\.\d\d s`).ReplaceAllString(r.out, "after 0.00 s"); r.code != 0 || got != want {
		t.Errorf("%s\n%+v", got, r)
	}
	if r = ping("--until-direct"); r.code != 0 || r.err != "" {
		t.Errorf("an answer came directly, and %+v", r)
	}
	f.SetPings(&redoubtv1.PingResponse{PeerName: "db-1", Address: "100.64.0.2", Sequence: 1, Lost: true, Reason: "denied on this node: no rule lets these nodes connect"})
	r = ping("-c", "1")
	if want := "db-1 (100.64.0.2) seq 1 lost: denied on this node: no rule lets these nodes connect\n1 sent, 0 answered, 100% lost\n"; r.code != exitFalse || r.out != want {
		t.Errorf("%+v", r)
	}
	if r = ping("--until-direct"); r.code != exitFalse || r.err != "redoubt: no direct path: no ping was answered\n" {
		t.Errorf("%+v", r)
	}
}

// TestPingInterval checks that an interval that the agent would not keep is refused, and not replaced by another one.
func TestPingInterval(t *testing.T) {
	_, socket := fake(t, status())
	for interval, ok := range map[string]bool{
		"200ms": true, "1m": true, "1.5s": true,
		"-1s": false, "0": false, "999us": false, "199ms": false, "61s": false, "1194h": false,
	} {
		r := redoubt(t, "", "--socket", socket, "ping", "db-1", "-c", "1", "--interval", interval)
		if ok != (r.code == 0) || !ok && (r.code != exitUsage || !strings.Contains(r.err, "--interval") || !strings.Contains(r.err, "want 200ms to 1m")) {
			t.Errorf("%s: %+v", interval, r)
		}
	}
}

// TestPingMedian checks that the median is that of the latest replies.
func TestPingMedian(t *testing.T) {
	var s pinging
	for i := range maxRTTs + 2 {
		s.take(&redoubtv1.PingResponse{RttUs: uint64(i + 1)})
	}
	if least := slices.Min(s.rtts); least != 3*time.Microsecond || len(s.rtts) != maxRTTs {
		t.Errorf("the oldest of %d replies took %s", len(s.rtts), least)
	}
}

// TestPingThatStaysRelayed checks that ping explains why a path is not direct, with and without --until-direct.
func TestPingThatStaysRelayed(t *testing.T) {
	f, socket := fake(t, status())
	e := echoes()[0]
	e.PathCause, e.PathWhy = "hard-nats", "hard NAT here and hard NAT there"
	f.SetPings(e)
	r := redoubt(t, "", "--socket", socket, "ping", "db-1")
	if r.code != 0 || !strings.HasSuffix(r.out, "paths: relay fra1 over udp (1)\nnot direct: hard NAT here and hard NAT there\n") {
		t.Errorf("%+v", r)
	}
	r = redoubt(t, "", "--socket", socket, "ping", "db-1", "--until-direct")
	if r.code != exitFalse || r.err != "redoubt: no direct path: hard NAT here and hard NAT there\n" {
		t.Errorf("%+v", r)
	}
	back := &redoubtv1.PingResponse{
		PeerName: "db-1", Address: "100.64.0.2", Moved: true, Path: "relay", Endpoint: "fra1", PathTransport: "tls",
		PathWhy: "the direct way stopped answering; no answer from its only address, tried every 5 s",
	}
	line := pingLine(back, wayJSON{"direct", "192.0.2.2:41641", ""}, 12340*time.Millisecond, false)
	if line != "now relay fra1 over tls after 12.34 s, was direct via 192.0.2.2:41641: "+back.GetPathWhy() {
		t.Error(line)
	}
	doubt := &redoubtv1.PingResponse{PeerName: "db-1", Address: "100.64.0.2", Sequence: 7, RttUs: 41_200, Path: "direct", Endpoint: "192.0.2.2:41641", PathDoubt: true, PathWhy: "it does not answer"}
	if line := pingLine(doubt, wayJSON{}, 0, false); line != "db-1 (100.64.0.2) seq 7 41.20 ms, direct 192.0.2.2:41641 also through the relay: it does not answer" {
		t.Error(line)
	}
}

func TestPingJSON(t *testing.T) {
	f, socket := fake(t, status())
	f.SetPings(echoes()...)
	r := redoubt(t, "", "--socket", socket, "ping", "db-1", "--json")
	out := regexp.MustCompile(`"elapsedMs":[\d.]+`).ReplaceAllString(r.out, `"elapsedMs":240`)
	golden(t, "ping.json", out)
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no object a line: %s", line)
		}
	}
	f.SetPings(&redoubtv1.PingResponse{PeerName: "db-1", Address: "100.64.0.2", Sequence: 1, Lost: true})
	r = redoubt(t, "", "--socket", socket, "ping", "db-1", "-c", "1", "--json")
	if r.code != exitFalse || !strings.Contains(r.out, `"lost":true`) || !strings.HasSuffix(r.out, `{"event":"summary","sent":1,"answered":0,"lostPercent":100,"minMs":null,"medianMs":null,"maxMs":null,"paths":[]}`+"\n") {
		t.Errorf("%+v", r)
	}
}

// TestPathsOfPeers checks that the status shows each peer's path, since when, and why it is not direct.
func TestPathsOfPeers(t *testing.T) {
	since := noon.Add(-12 * time.Minute).UnixMilli()
	golden(t, "paths.txt", peerPaths([]*redoubtv1.LocalPeer{
		{Name: "idle", PathCause: "unsent", PathWhy: "nothing was sent yet"},
		{Name: "db-1", Path: "direct", Endpoint: "192.0.2.2:41641", PathSince: since, PathRttUs: 1912},
		{Name: "old", Path: "direct", Endpoint: "192.0.2.3:41641"},
		{Name: "roams", Path: "direct", Endpoint: "192.0.2.4:41641", PathSince: since, PathRttUs: 30_000, PathDoubt: true, PathCause: "in-doubt", PathWhy: "it does not answer"},
		{Name: "eve", Path: "relay", Endpoint: "fra1", PathTransport: "udp", PathSince: since, PathRttUs: 41_200, PathCause: "hard-nats", PathWhy: "hard NAT here and hard NAT there"},
		{Name: "gone", Path: "relay", Endpoint: "fra1", PathTransport: "none", PathCause: "no-answer", PathWhy: "no answer from its 3 addresses, tried every 5 s; and relay fra1, its home relay, cannot be reached"},
		{Name: "off", PathCause: "no-answer", PathWhy: "no answer from its 3 addresses, tried every 5 s"},
	}, noon, false))
}

// TestPathsInTheReadme checks that the README shows paths as they are printed.
func TestPathsInTheReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	printed := peerPaths([]*redoubtv1.LocalPeer{{
		Name: "server", Path: "relay", Endpoint: "coordinator", PathTransport: "udp", PathSince: noon.Add(-3 * time.Minute).UnixMilli(),
		PathRttUs: 41_200, PathMtu: 1420, PathCause: "udp-blocked-there", PathWhy: "UDP is blocked there",
	}}, noon, palette(false))
	if !strings.Contains(string(readme), "```text"+printed+"```") {
		t.Errorf("README.md does not show this:%s", printed)
	}
}
