// Package identitytest is a mesh's authority in memory, for tests of code that takes certificates.
package identitytest

import (
	"crypto/rand"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Mesh issues certificates.
type Mesh struct {
	Mesh         proto.Mesh
	Root         *cert.Authority
	Intermediate *cert.Authority
	Cross        []byte // for a successor: its root, signed by the previous root; nil: none
}

// New returns a mesh that begins at a time and lasts for a year.
func New(now time.Time) *Mesh {
	id := must(proto.NewMeshID(rand.Reader))
	m := &Mesh{Mesh: proto.Mesh{
		ID: id, Domain: "mesh.test", V4: netip.MustParsePrefix("100.80.0.0/16"), V6: netip.MustParsePrefix("fd00:1:2::/48"),
	}}
	const year = 366 * 24 * time.Hour
	m.Root = must(cert.NewRoot(rand.Reader, id, now, year))
	m.Intermediate = must(m.Root.NewIntermediate(rand.Reader, now, year))
	return m
}

// Machine is the identity and keys of a node.
type Machine struct {
	ID     proto.NodeID
	Number uint16 // the last part of its addresses
	Name   string
	Tags   []string
	Device key.DevicePrivate
	Node   key.NodePrivate
}

// Machine creates a machine with new keys.
func (m *Mesh) Machine(number uint16, name string) *Machine {
	return &Machine{
		ID: proto.NodeID(number), Number: number, Name: name, Tags: []string{"tag:test"},
		Device: must(key.NewDevice(rand.Reader)), Node: must(key.NewNode(rand.Reader)),
	}
}

// Identity returns the identity in the machine's certificates.
func (n *Machine) Identity() proto.Identity {
	v6 := netip.MustParseAddr("fd00:1:2::").As16()
	v6[14], v6[15] = byte(n.Number>>8), byte(n.Number)
	return proto.Identity{
		ID: n.ID, Name: n.Name, Tags: n.Tags,
		Addrs: proto.Addrs{V4: netip.AddrFrom4([4]byte{100, 80, byte(n.Number >> 8), byte(n.Number)}), V6: netip.AddrFrom16(v6)},
	}
}

// Issue issues a node certificate; change may alter its content.
func (m *Mesh) Issue(n *Machine, sequence uint64, from time.Time, life time.Duration, change ...func(*cert.Node)) []byte {
	from = from.Truncate(time.Second)
	c := cert.Node{
		Mesh: m.Mesh.ID, Identity: n.Identity(), DNSName: n.Name + "." + m.Mesh.Domain, Device: n.Device.Device(),
		Keys:  []cert.NodeKey{{Public: n.Node.Public(), NotBefore: from, NotAfter: from.Add(life)}},
		Level: cert.LevelToken, Sequence: sequence, NotBefore: from, NotAfter: from.Add(life),
	}
	for _, f := range change {
		f(&c)
	}
	return must(m.Intermediate.IssueNode(rand.Reader, c)).Raw
}

// Record returns an identity as a coordinator issues it.
func (m *Mesh) Record(n *Machine, sequence uint64, from time.Time, life time.Duration) identity.Record {
	return identity.Record{
		Chain: [][]byte{m.Issue(n, sequence, from, life), m.Intermediate.Certificate().Raw},
		Roots: [][]byte{m.Root.Certificate().Raw}, Mesh: m.Mesh,
	}
}

// Self returns a verified identity.
func (m *Mesh) Self(n *Machine, sequence uint64, from time.Time, life time.Duration) *identity.Self {
	return must(identity.Check(m.Record(n, sequence, from, life), n.Device.Device(), n.Node.Public()))
}

// Netmap returns a netmap for a node, with these peers and rules that allow all TCP and UDP with them.
func (m *Mesh) Netmap(self *Machine, version uint64, grace time.Duration, peers ...proto.Peer) *proto.Netmap {
	nm := &proto.Netmap{
		Version: proto.Version{Epoch: 1, N: version}, Mesh: m.Mesh, Self: self.ID,
		Authorities: [][]byte{m.Intermediate.Certificate().Raw}, Requires: []string{proto.FeatureRules},
		Outage: proto.Outage{Grace: grace}, Sets: []proto.Set{{Name: "all"}},
	}
	for _, p := range peers {
		nm.Peers = append(nm.Peers, &p)
		nm.Sets[0].Members = append(nm.Sets[0].Members, p.ID)
	}
	own := self.Identity().Addrs
	for _, d := range []proto.Direction{proto.In, proto.Out} {
		nm.Rules = append(nm.Rules, proto.Rule{
			Key: "acls[0]/" + d.String(), Origin: proto.Origin{Path: "acls[0]", Line: 1}, Direction: d,
			Peers: proto.Selector{Sets: []string{"all"}}, Local: []netip.Prefix{netip.PrefixFrom(own.V4, 32), netip.PrefixFrom(own.V6, 128)},
			Services: []proto.Service{{Proto: proto.ProtoTCP, Last: 65535}, {Proto: proto.ProtoUDP, Last: 65535}},
		})
	}
	return nm
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Successor returns the same mesh under another root, which this one's root vouches for.
func (m *Mesh) Successor(now time.Time) *Mesh {
	next := &Mesh{Mesh: m.Mesh}
	const year = 366 * 24 * time.Hour
	next.Root = must(cert.NewRoot(rand.Reader, m.Mesh.ID, now, year))
	next.Intermediate = must(next.Root.NewIntermediate(rand.Reader, now, year))
	next.Cross = must(m.Root.CrossSign(rand.Reader, next.Root.Certificate())).Raw
	return next
}
