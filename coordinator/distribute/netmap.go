package distribute

import (
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Source is everything that netmaps are made from. It is immutable.
type Source struct {
	Snapshot *directory.Snapshot
	Program  *compile.Program
	// Authorities are the intermediate certificates in use, sorted.
	Authorities [][]byte
	Outage      proto.Outage // unless the policy says otherwise

	meets *pairs
}

// conceivable lists all features that a netmap can require.
var conceivable = []string{proto.FeatureConditions, proto.FeatureDeny, proto.FeatureRules}

// Requires returns the features that a node needs to enforce a view, sorted.
func Requires(v compile.View) []string {
	var conditions, deny bool
	for i := range v.Rules {
		conditions = conditions || v.Rules[i].Conditional
		deny = deny || v.Rules[i].Action != proto.Allow
	}
	for i := range v.Sets {
		conditions = conditions || v.Sets[i].Conditional
	}
	out := make([]string, 0, 3)
	if conditions {
		out = append(out, proto.FeatureConditions)
	}
	if deny {
		out = append(out, proto.FeatureDeny)
	}
	return append(out, proto.FeatureRules)
}

// Missing returns the features that a node needs and lacks.
func Missing(s Source, id proto.NodeID, features []string) []string {
	if !s.Snapshot.Trusted(id) || len(lacking(conceivable, features)) == 0 {
		return nil
	}
	return lacking(Requires(s.Program.For(s.Snapshot, id)), features)
}

func lacking(required, features []string) (out []string) {
	for _, f := range required {
		if !slices.Contains(features, f) {
			out = append(out, f)
		}
	}
	return out
}

// Netmap returns what a node with these features knows about the mesh: the peers that some rule ties it to, as long as anyone
// may still trust their certificates, the rules themselves, and which of its peers to refuse because they were revoked or
// locked. It is nil for a node that is not trusted. A node that lacks a feature learns which, and gets no rules that it could
// enforce wrongly.
func Netmap(s Source, id proto.NodeID, features []string) *proto.Netmap {
	return s.bind().netmap(id, features)
}

// bound is a source that caches what netmaps have in common. It is not safe for concurrent use.
type bound struct {
	Source
	policy *compile.Bound
	relays []proto.Relay
}

// outage returns what the policy says about outages, or the default if it says nothing.
func (s Source) outage() proto.Outage { return s.Program.Outage(s.Outage) }

func (s Source) bind() *bound {
	if s.meets == nil {
		s.meets = new(pairs)
	}
	return &bound{s, s.Program.On(s.Snapshot), s.Snapshot.Relays()}
}

func (s *bound) netmap(id proto.NodeID, features []string) *proto.Netmap {
	n, known := s.Snapshot.Lookup(id)
	if !known || n.Dismissed() {
		return nil
	}
	if n.Relay {
		return s.relayNetmap(id)
	}
	nm := &proto.Netmap{
		Version: s.Snapshot.Version(), Mesh: s.Snapshot.Mesh(), Self: id,
		Authorities: s.Authorities, Outage: s.outage(),
	}
	if n.Quarantine != nil {
		nm.Requires = []string{proto.FeatureRules}
		return nm
	}
	view := s.policy.For(id)
	if nm.Requires = Requires(view); len(lacking(nm.Requires, features)) > 0 {
		return nm
	}
	nm.Rules, nm.Sets, nm.Withheld = view.Rules, view.Sets, view.Withheld
	if slices.Contains(features, proto.FeatureRelays) {
		nm.Relays = s.relays
	}
	knows, paths := slices.Contains(features, proto.FeatureBarred), slices.Contains(features, proto.FeaturePaths)
	nm.Peers = make([]*proto.Peer, 0, len(view.Peers))
	for id, peer := range s.Snapshot.Peers(view.Peers) {
		if peer == nil {
			if sequence, barred := s.Snapshot.Bars(id); barred && knows {
				nm.Barred = append(nm.Barred, proto.Barred{ID: id, Sequence: sequence})
			}
			continue
		}
		nm.Peers = append(nm.Peers, shown(peer, view.Routes[id], paths))
	}
	return nm
}

// sameReach reports whether two snapshots agree on how to reach a node.
func sameReach(a, b proto.Reach) bool { return a.Equal(&b) }

// shown returns peer as a node sees it that reaches routes through it. If paths is false, it omits the path
// key and the home relay.
func shown(peer *proto.Peer, routes []netip.Prefix, paths bool) *proto.Peer {
	hide := !paths && (peer.PathKey != nil || peer.HomeRelay != 0)
	if len(routes) == 0 && !hide {
		return peer
	}
	other := *peer
	other.Routes = routes
	if hide {
		other.PathKey, other.HomeRelay = nil, 0
	}
	return &other
}

// affected adds to dirty the nodes whose netmaps a change of one node can affect: those that the policy ties it to before or
// after the change, and itself.
func affected(before, after *bound, id proto.NodeID, dirty map[proto.NodeID]struct{}) {
	for _, other := range compile.Affected(before.policy, after.policy, id) {
		dirty[other] = struct{}{}
	}
}

// hurry is how much lifetime the certificate that peers hold must have left for its renewal not to be urgent.
const hurry = 4 * time.Minute

// calm reports whether all that happened to a node is that its certificate was renewed well before the old one ends, and that
// its key is one that its peers already know.
func calm(before, after *directory.Snapshot, id proto.NodeID, now time.Time) bool {
	old, was := before.Lookup(id)
	n, is := after.Lookup(id)
	return was && is && !n.Barred() && (n.Key == old.Key || n.Key == old.Next) && old.Certificate.Serial != n.Certificate.Serial &&
		old.Certificate.NotAfter.Sub(now) > hurry &&
		directory.Alike(before, after, id) && sameReach(before.Reach(id), after.Reach(id))
}
