package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// tunnel describes the engine's counters of a peer, for people.
func tunnel(s wg.PeerStats) *redoubtv1.Tunnel {
	if s.ID == 0 {
		return nil // the engine does not know the peer, or there is no engine
	}
	return &redoubtv1.Tunnel{
		PublicKey: s.Key.String(), KeySince: millis(s.KeySince), Keys: uint32(s.Keys), Sessions: uint32(s.Sessions),
		SessionSince: millis(s.SessionSince), Handshakes: s.Handshakes, Unanswered: s.Unanswered, Drops: s.Drops.Map(),
	}
}

// wireguard describes the engine's own counters, for people.
func wireguard(s wg.Stats) *redoubtv1.WireGuard {
	w := &redoubtv1.WireGuard{Drops: s.Drops.Map()}
	for _, k := range s.Keys {
		w.Keys = append(w.Keys, &redoubtv1.NodeKey{PublicKey: k.Public.String(), Since: millis(k.Since), Until: millis(k.Until)})
	}
	return w
}

// tunnelMetrics are the metrics of the engine. They cover only busy peers: the values of the idle ones in a large mesh do
// not change.
type tunnelMetrics struct {
	keys, keySince, dropped *prometheus.Desc

	peerKeySince, peerSessions, peerSession, peerShaken, peerHandshakes, peerUnanswered, peerBytes, peerDropped, peerDenied, peerMTU *prometheus.Desc
}

func newTunnelMetrics(d func(name, help string, labels ...string) *prometheus.Desc) tunnelMetrics {
	return tunnelMetrics{
		keys:           d("node_keys", "WireGuard keys of this node that are good: one, and those that it has just replaced."),
		keySince:       d("node_key_since_seconds", "When the newest WireGuard key of this node was taken into use."),
		dropped:        d("wireguard_dropped_total", "Messages and packets that the engine dropped, of all peers and of strangers.", "reason"),
		peerKeySince:   d("peer_key_since_seconds", "When the WireGuard key of a busy peer was taken into use.", "peer"),
		peerSessions:   d("peer_sessions", "WireGuard sessions with a busy peer that are alive.", "peer"),
		peerSession:    d("peer_session_since_seconds", "When the session was made that a busy peer is sent by.", "peer"),
		peerShaken:     d("peer_last_handshake_seconds", "When a handshake with a busy peer was completed last.", "peer"),
		peerHandshakes: d("peer_handshakes_total", "Handshakes with a busy peer that were completed.", "peer"),
		peerUnanswered: d("peer_handshakes_unanswered_total", "Handshakes with a busy peer that were not answered in time.", "peer"),
		peerBytes:      d("peer_bytes_total", "Bytes of WireGuard from and to a busy peer.", "peer", "direction"),
		peerDropped:    d("peer_dropped_total", "Messages from and packets to a busy peer that the engine dropped.", "peer", "reason"),
		peerDenied:     d("peer_packets_dropped_total", "Packets from and to a busy peer that the filter dropped.", "peer", "reason"),
		peerMTU:        d("peer_path_mtu_bytes", "How large packets inside the tunnel to a busy peer may be, where that is known.", "peer", "path"),
	}
}

// tunnels is what the engine reports for the metrics.
type tunnels struct {
	own   wg.Stats
	peers []wg.PeerStats
	names map[proto.NodeID]string
	ways  ways

	denied func(yield func(proto.NodeID, *filter.Drops) bool) // from the filter
}

// tunnels reads the engine's counters; ok is false if there is no engine.
func (a *Agent) tunnels(known []machine.PeerView) (t tunnels, ok bool) {
	p := a.loop.path
	if p == nil {
		return t, false
	}
	var err error
	if t.own, err = p.engine.Stats(); err == nil {
		t.peers, err = p.engine.Active()
	}
	if err != nil {
		a.log.Debug("engine's counters", "err", err)
		return t, false
	}
	t.denied = a.filter.PeerDrops
	ids := make([]proto.NodeID, 0, len(t.peers))
	t.names = make(map[proto.NodeID]string, len(t.peers))
	for _, s := range t.peers {
		t.names[s.ID] = s.ID.String()
		ids = append(ids, s.ID)
	}
	t.ways = p.ways(ids)
	for _, p := range known {
		if _, busy := t.names[p.Node.ID]; busy {
			t.names[p.Node.ID] = p.Node.Name
		}
	}
	return t, true
}

func (m *tunnelMetrics) collect(t tunnels, gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	since := func(d *prometheus.Desc, at time.Time, labels ...string) {
		if !at.IsZero() {
			gauge(d, float64(at.UnixMilli())/1000, labels...)
		}
	}
	gauge(m.keys, float64(len(t.own.Keys)))
	if len(t.own.Keys) > 0 {
		since(m.keySince, t.own.Keys[0].Since)
	}
	for why, n := range t.own.Drops {
		count(m.dropped, n, wg.Drop(why).String())
	}
	for _, s := range t.peers {
		name := t.names[s.ID]
		since(m.peerKeySince, s.KeySince, name)
		gauge(m.peerSessions, float64(s.Sessions), name)
		since(m.peerSession, s.SessionSince, name)
		since(m.peerShaken, s.LastHandshake, name)
		count(m.peerHandshakes, s.Handshakes, name)
		count(m.peerUnanswered, s.Unanswered, name)
		count(m.peerBytes, s.Rx, name, "in")
		count(m.peerBytes, s.Tx, name, "out")
		if way := t.ways.of(s); way.mtu > 0 && way.kind != "" {
			gauge(m.peerMTU, float64(way.mtu), name, way.kind)
		}
		for why, n := range s.Drops {
			if n > 0 {
				count(m.peerDropped, n, name, wg.Drop(why).String())
			}
		}
	}
	for id, d := range t.denied {
		if name, busy := t.names[id]; busy {
			for r, n := range d.Each {
				count(m.peerDenied, n, name, r.String())
			}
		}
	}
}
