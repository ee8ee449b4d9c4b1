package agent

import (
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// ways are the paths by which packets reach peers, for people.
type ways struct {
	views  map[proto.NodeID]path.View
	relays map[proto.NodeID]relay.State
}

func (p *dataPath) ways(ids []proto.NodeID) ways {
	w := ways{p.steering.pilot.Views(ids), map[proto.NodeID]relay.State{}}
	for _, s := range p.steering.client.States() {
		w.relays[s.Relay.ID] = s
	}
	return w
}

// told describes the path to a peer.
type told struct {
	kind, endpoint string // "direct" and the address, or "relay" and its name; empty while there is no path
	transport      string // of a relay; for a direct path: punched, or empty
	since          time.Time
	rtt            time.Duration
	doubt          bool
	mtu            int // of packets inside the tunnel; 0: unknown
	fragments      bool
	cause, why     string
}

// of describes the path to a peer.
func (w ways) of(s wg.PeerStats) told {
	v, steered := w.views[s.ID]
	switch {
	case !steered && s.Endpoint.IsValid():
		return told{kind: "direct", endpoint: s.Endpoint.String()}
	case !steered:
		return told{}
	}
	t := told{since: v.Since, rtt: v.RTT, doubt: v.Doubt, mtu: v.MTU, fragments: v.Fragments, cause: string(v.Cause), why: v.Why}
	if v.Way.Direct() {
		t.kind, t.endpoint = "direct", v.Way.Addr.String()
		if v.Punched {
			t.transport = "punched"
		}
		return t
	}
	if v.Way.Relay == 0 {
		return t
	}
	r := w.relays[v.Way.Relay]
	name := r.Relay.Name
	if name == "" {
		name = v.Way.Relay.String()
	}
	if r.Transport == relay.None && v.Cause != path.Unsent {
		t.why += "; relay " + name + ", its home relay, cannot be reached"
		if r.Err != nil {
			t.why += ": " + r.Err.Error()
		}
	}
	if s.LastHandshake.IsZero() {
		return t // nothing has come through yet
	}
	t.kind, t.endpoint, t.transport = "relay", name, r.Transport.String()
	return t
}

// same reports whether two describe the same path.
func (t told) same(o told) bool {
	return t.kind == o.kind && t.endpoint == o.endpoint && t.transport == o.transport
}

// status fills in the path fields of a peer's status.
func (t told) status(l *redoubtv1.LocalPeer) {
	l.Path, l.Endpoint, l.PathTransport, l.PathSince = t.kind, t.endpoint, t.transport, millis(t.since)
	l.PathMtu, l.PathFragments = uint32(t.mtu), t.fragments
	l.PathRttUs, l.PathDoubt, l.PathCause, l.PathWhy = uint64(t.rtt.Microseconds()), t.doubt, t.cause, t.why
}

// ping fills in the path fields of an echo.
func (t told) ping(r *redoubtv1.PingResponse) {
	r.Path, r.Endpoint, r.PathTransport, r.PathSince = t.kind, t.endpoint, t.transport, millis(t.since)
	r.PathMtu, r.PathFragments = uint32(t.mtu), t.fragments
	r.PathRttUs, r.PathDoubt, r.PathCause, r.PathWhy = uint64(t.rtt.Microseconds()), t.doubt, t.cause, t.why
}
