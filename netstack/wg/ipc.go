package wg

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The text protocol is described at https://www.wireguard.com/xplatform/. All values written here are typed, so none can
// contain a line break.

// script is the text of a "set" operation.
type script struct{ strings.Builder }

func (s *script) line(name, value string) {
	s.WriteString(name)
	s.WriteByte('=')
	s.WriteString(value)
	s.WriteByte('\n')
}

func (s *script) key(name string, k [32]byte) { s.line(name, hex.EncodeToString(k[:])) }

func (s *script) peer(k key.NodePublic) { s.key("public_key", [32]byte(k.Bytes())) }

func (s *script) endpoint(candidates []netip.AddrPort) {
	if len(candidates) > 0 {
		s.line("endpoint", bind.FormatCandidates(candidates))
	}
}

func (s *script) keepalive(d time.Duration) {
	s.line("persistent_keepalive_interval", strconv.FormatInt(int64(d/time.Second), 10))
}

// remove removes the peer with this key.
func (s *script) remove(k key.NodePublic) {
	s.peer(k)
	s.line("remove", "true")
}

// set changes the peer from old to cfg; old is nil if the peer does not exist yet.
func (s *script) set(cfg PeerConfig, old *PeerConfig) {
	s.peer(cfg.Keys[0])
	if old != nil {
		s.line("update_only", "true")
	}
	if old == nil || old.PSK != cfg.PSK {
		s.key("preshared_key", cfg.PSK)
	}
	if old == nil || !sameCandidates(old.Endpoints, cfg.Endpoints) {
		s.endpoint(cfg.Endpoints)
	}
	if old == nil || old.Addrs != cfg.Addrs || !slices.Equal(old.Routes, cfg.Routes) {
		s.line("replace_allowed_ips", "true")
		for _, a := range cfg.Addrs.Slice() {
			if a.IsValid() {
				s.line("allowed_ip", netip.PrefixFrom(a, a.BitLen()).String())
			}
		}
		for _, p := range cfg.Routes {
			s.line("allowed_ip", p.String())
		}
	}
	if old == nil || old.Keepalive != cfg.Keepalive {
		s.keepalive(cfg.Keepalive)
	}
}

// probe sets the peer's candidates and makes the engine send a keepalive, which it does when the keepalive interval changes
// from zero to nonzero.
func (s *script) probe(cfg PeerConfig) {
	s.peer(cfg.Keys[0])
	s.line("update_only", "true")
	s.endpoint(cfg.Endpoints)
	s.keepalive(0)
	s.keepalive(max(cfg.Keepalive, time.Second))
	if cfg.Keepalive == 0 {
		s.peer(cfg.Keys[0])
		s.line("update_only", "true")
		s.keepalive(0)
	}
}

// state is the result of a "get" operation, without its secrets.
type state struct {
	port  uint16
	peers map[key.NodePublic]PeerStats
}

// readState parses the answer to a "get" operation. It ignores unknown lines.
func readState(r io.Reader) (state, error) {
	st := state{peers: map[key.NodePublic]PeerStats{}}
	var p PeerStats
	put := func() {
		if !p.Key.IsZero() {
			st.peers[p.Key] = p
		}
	}
	var sec int64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "=")
		var err error
		switch {
		case !ok:
			err = fmt.Errorf("want name=value")
		case name == "listen_port":
			err = setUint(&st.port, value, 16)
		case name == "public_key":
			put()
			p, sec = PeerStats{}, 0
			p.Key, err = parseKey(value)
		case name == "endpoint":
			var list []netip.AddrPort
			var known bool
			if list, known, err = bind.ParseText(value); known {
				p.Endpoint = list[0]
			}
		case name == "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case name == "last_handshake_time_nsec":
			var nsec int64
			nsec, err = strconv.ParseInt(value, 10, 64)
			if sec != 0 || nsec != 0 {
				p.LastHandshake = time.Unix(sec, nsec)
			}
		case name == "rx_bytes":
			err = setUint(&p.Rx, value, 64)
		case name == "tx_bytes":
			err = setUint(&p.Tx, value, 64)
		}
		if err != nil {
			return state{}, fmt.Errorf("WireGuard state: line %q: %w", safeName(name), err)
		}
	}
	put()
	if err := lines.Err(); err != nil {
		return state{}, fmt.Errorf("WireGuard state: %w", err)
	}
	return st, nil
}

// safeName keeps anything that might be a key out of error texts.
func safeName(name string) string {
	const longest = 32
	if len(name) > longest {
		return "..."
	}
	return name
}

func setUint[T uint16 | uint64](to *T, text string, bits int) error {
	v, err := strconv.ParseUint(text, 10, bits)
	*to = T(v)
	return err
}

func parseKey(text string) (key.NodePublic, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return key.NodePublic{}, err
	}
	return key.ParseNodePublic(b)
}

// sameCandidates reports whether b asks for nothing different from a: order alone is no reason to forget where a peer is.
func sameCandidates(a, b []netip.AddrPort) bool {
	missing := func(list []netip.AddrPort) func(netip.AddrPort) bool {
		return func(x netip.AddrPort) bool { return !slices.Contains(list, x) }
	}
	return len(b) == 0 || (!slices.ContainsFunc(a, missing(b)) && !slices.ContainsFunc(b, missing(a)))
}
