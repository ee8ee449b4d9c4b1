package wg

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Peers implements Engine.
func (e *Inline) Peers() ([]PeerStats, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.ended(); err != nil {
		return nil, err
	}
	return e.statsOf(slices.Collect(maps.Values(e.nodes))), nil
}

// Active implements Engine.
func (e *Inline) Active() ([]PeerStats, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.ended(); err != nil {
		return nil, err
	}
	return e.statsOf(e.active.list()), nil
}

// Peer implements Engine.
func (e *Inline) Peer(id proto.NodeID) (PeerStats, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.ended(); err != nil {
		return PeerStats{}, err
	}
	n := e.nodes[id]
	if n == nil {
		return PeerStats{}, nil
	}
	return e.statsOf([]*node{n})[0], nil
}

// Stats implements Engine.
func (e *Inline) Stats() (Stats, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.ended(); err != nil {
		return Stats{}, err
	}
	s := Stats{Drops: e.drops.read()}
	for _, l := range e.locals {
		s.Keys = append(s.Keys, LocalKey{l.private.Public(), l.since, l.until})
	}
	return s, nil
}

func (e *Inline) statsOf(list []*node) []PeerStats {
	out := make([]PeerStats, 0, len(list))
	now := e.now()
	for _, n := range list {
		n.mu.Lock()
		out = append(out, n.stats(now))
		n.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b PeerStats) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// stats returns the node's counters. The caller holds its lock.
func (n *node) stats(now time.Time) PeerStats {
	r := n.key(now)
	s := PeerStats{
		ID: n.id, Key: r.public, LastHandshake: n.shaken, Rx: n.rx.Load(), Tx: n.tx.Load(),
		KeySince: r.since, Keys: len(n.remotes), Handshakes: n.shakes, Unanswered: n.missed,
	}
	if d := n.drops.Load(); d != nil {
		s.Drops = d.read()
	}
	if n.peer != nil {
		s.Sessions = n.peer.Sessions()
		if n.peer.LastHandshake().After(n.shaken) {
			s.LastHandshake = n.peer.LastHandshake()
		}
		if cur := n.peer.Current(now); cur != nil {
			s.SessionSince = cur.Made()
		}
	}
	if c := n.cfg.Course; c != nil {
		s.Endpoint = c.Known()
	} else if n.known {
		s.Endpoint = n.address()
	}
	return s
}

// key returns the peer's key in use, or the preferred one if none is.
func (n *node) key(now time.Time) *remoteKey {
	if n.peer != nil {
		if cur := n.peer.Current(now); cur != nil {
			for _, r := range n.remotes {
				if r.noise == cur.Pair.Remote {
					return r
				}
			}
		}
	}
	return n.remotes[0]
}

// address returns where the peer is, or its first candidate.
func (n *node) address() netip.AddrPort {
	if n.endpoint == nil {
		return netip.AddrPort{}
	}
	list, _, err := bind.ParseText(n.endpoint.DstToString())
	if err != nil {
		return netip.AddrPort{}
	}
	return list[0]
}

// WriteUAPI implements Engine.
func (e *Inline) WriteUAPI(w io.Writer) error {
	text, err := e.stateText()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func (e *Inline) stateText() ([]byte, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if err := e.ended(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	line := func(name, value string) {
		b.WriteString(name)
		b.WriteByte('=')
		b.WriteString(value)
		b.WriteByte('\n')
	}
	number := func(name string, v uint64) { line(name, strconv.FormatUint(v, 10)) }
	number("listen_port", uint64(e.port))
	now := e.now()
	for _, n := range e.nodes {
		n.mu.Lock()
		s, at := n.stats(now), n.address()
		n.mu.Unlock()
		line("public_key", hex.EncodeToString(s.Key.Bytes()))
		line("protocol_version", "1")
		if at.IsValid() {
			line("endpoint", at.String())
		}
		var sec, nsec uint64
		if !s.LastHandshake.IsZero() {
			sec, nsec = uint64(s.LastHandshake.Unix()), uint64(s.LastHandshake.Nanosecond())
		}
		number("last_handshake_time_sec", sec)
		number("last_handshake_time_nsec", nsec)
		number("tx_bytes", s.Tx)
		number("rx_bytes", s.Rx)
		number("persistent_keepalive_interval", uint64(n.cfg.Keepalive/time.Second))
		for _, a := range n.cfg.Addrs.Slice() {
			if a.IsValid() {
				line("allowed_ip", netip.PrefixFrom(a, a.BitLen()).String())
			}
		}
		for _, p := range n.cfg.Routes {
			if e.owns(n, p) {
				line("allowed_ip", p.String())
			}
		}
	}
	return b.Bytes(), nil
}
