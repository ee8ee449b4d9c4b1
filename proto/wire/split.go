package wire

import (
	"slices"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const (
	// MaxPart is the size that parts are kept below, in bytes.
	MaxPart = 512 << 10
	// maxSlice is the maximum number of node ids in one piece of a set.
	maxSlice = 16 << 10
	// perElement is the maximum size of an element's tag and length.
	perElement = 8
)

// filler distributes elements over parts, filling each as far as possible.
type filler struct {
	size int
	next func() pb.Message // starts another part
}

// begin starts another part.
func (f *filler) begin() { f.size = pb.Size(f.next()) + perElement } // the last one is for its field more

// add accounts for an element of n bytes, and starts another part if it does not fit into the current one.
func (f *filler) add(n int) {
	n += perElement
	if f.size+n >= MaxPart {
		f.begin()
	}
	f.size += n
}

// head encodes a head for the current part. A head cannot continue in another part, so it omits withheld rules that do not fit:
// they only explain refusals. The limits of everything else in it leave room.
func (f *filler) head(h proto.Head) *redoubtv1.Head {
	out := fromHead(h)
	f.size += pb.Size(out) + perElement
	for _, w := range h.Withheld {
		m := fromWithheld(w)
		if n := pb.Size(m) + perElement; f.size+n < MaxPart {
			f.size += n
			out.Withheld = append(out.Withheld, m)
		}
	}
	return out
}

// fill encodes elements and puts each into the current part.
func fill[T any, M pb.Message](f *filler, in []T, encode func(T) M, put func(M)) {
	for _, v := range in {
		m := encode(v)
		f.add(pb.Size(m))
		put(m)
	}
}

// FromNetmap encodes a valid netmap as parts of less than MaxPart each. It omits withheld rules that do not fit into the first.
func FromNetmap(nm *proto.Netmap) []*redoubtv1.NetmapPart {
	var parts []*redoubtv1.NetmapPart
	var p *redoubtv1.NetmapPart
	f := &filler{next: func() pb.Message {
		if p != nil {
			p.More = true
		}
		p = &redoubtv1.NetmapPart{Version: FromVersion(nm.Version)}
		parts = append(parts, p)
		return p
	}}
	f.begin()
	p.Head = f.head(proto.Head{
		Mesh: nm.Mesh, Self: nm.Self, Authorities: nm.Authorities, Requires: nm.Requires, Outage: nm.Outage,
		Withheld: nm.Withheld, Relays: nm.Relays,
	})
	fill(f, nm.Peers, fromPeer, func(m *redoubtv1.Peer) { p.Peers = append(p.Peers, m) })
	fill(f, nm.Barred, fromBarred, func(m *redoubtv1.Barred) { p.Barred = append(p.Barred, m) })
	fill(f, sliceSets(nm.Sets), fromSet, func(m *redoubtv1.Set) { p.Sets = append(p.Sets, m) })
	fill(f, nm.Rules, fromRule, func(m *redoubtv1.Rule) { p.Rules = append(p.Rules, m) })
	return parts
}

// FromDelta encodes a delta as FromNetmap does a netmap.
func FromDelta(d *proto.Delta) []*redoubtv1.DeltaPart {
	var parts []*redoubtv1.DeltaPart
	var p *redoubtv1.DeltaPart
	f := &filler{next: func() pb.Message {
		if p != nil {
			p.More = true
		}
		p = &redoubtv1.DeltaPart{From: FromVersion(d.From), To: FromVersion(d.To)}
		parts = append(parts, p)
		return p
	}}
	f.begin()
	if d.Head != nil {
		p.Head = f.head(*d.Head)
	}
	fill(f, d.UpsertPeers, fromPeer, func(m *redoubtv1.Peer) { p.UpsertPeers = append(p.UpsertPeers, m) })
	fill(f, d.Reaches, fromReachChange, func(m *redoubtv1.ReachChange) { p.Reaches = append(p.Reaches, m) })
	for _, id := range d.RemovePeers {
		f.add(8)
		p.RemovePeers = append(p.RemovePeers, uint64(id))
	}
	fill(f, d.UpsertBarred, fromBarred, func(m *redoubtv1.Barred) { p.UpsertBarred = append(p.UpsertBarred, m) })
	for _, id := range d.RemoveBarred {
		f.add(8)
		p.RemoveBarred = append(p.RemoveBarred, uint64(id))
	}
	fill(f, sliceSets(d.UpsertSets), fromSet, func(m *redoubtv1.Set) { p.UpsertSets = append(p.UpsertSets, m) })
	fill(f, sliceChanges(d.ChangeSets), fromSetChange, func(m *redoubtv1.SetChange) { p.ChangeSets = append(p.ChangeSets, m) })
	for _, name := range d.RemoveSets {
		f.add(len(name))
		p.RemoveSets = append(p.RemoveSets, name)
	}
	fill(f, d.UpsertRules, fromRule, func(m *redoubtv1.Rule) { p.UpsertRules = append(p.UpsertRules, m) })
	for _, key := range d.RemoveRules {
		f.add(len(key))
		p.RemoveRules = append(p.RemoveRules, key)
	}
	return parts
}

// sliceSets splits sets with very many members into pieces of the same name.
func sliceSets(in []proto.Set) []proto.Set {
	var out []proto.Set
	for _, s := range in {
		if len(s.Members) <= maxSlice {
			out = append(out, s)
			continue
		}
		for piece := range slices.Chunk(s.Members, maxSlice) {
			out = append(out, proto.Set{Name: s.Name, Members: piece, Conditional: s.Conditional})
		}
	}
	return out
}

func sliceChanges(in []proto.SetChange) []proto.SetChange {
	var out []proto.SetChange
	for _, c := range in {
		if len(c.Add)+len(c.Remove) <= maxSlice {
			out = append(out, c)
			continue
		}
		for piece := range slices.Chunk(c.Add, maxSlice) {
			out = append(out, proto.SetChange{Name: c.Name, Add: piece})
		}
		for piece := range slices.Chunk(c.Remove, maxSlice) {
			out = append(out, proto.SetChange{Name: c.Name, Remove: piece})
		}
	}
	return out
}
