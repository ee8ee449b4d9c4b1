package wire

import (
	"fmt"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// MaxAssembled limits the encoded size of all parts of one netmap or delta together, in bytes.
const MaxAssembled = 64 << 20

// counter limits what an assembler has accepted.
type counter struct {
	bytes, peers, barred, sets, members, rules int
	parts                                      int
}

func (c *counter) check() error {
	switch {
	case c.bytes > MaxAssembled:
		return malformed("more than %d bytes together", MaxAssembled)
	case c.peers > proto.MaxPeers:
		return malformed("more than %d peers", proto.MaxPeers)
	case c.barred > proto.MaxBarred:
		return malformed("more than %d barred nodes", proto.MaxBarred)
	// Pieces of sets count as sets, hence the margin.
	case c.sets > proto.MaxSets+proto.MaxMembers/maxSlice+1:
		return malformed("more than %d sets", proto.MaxSets)
	case c.members > proto.MaxMembers:
		return malformed("more than %d members of sets", proto.MaxMembers)
	case c.rules > proto.MaxRules:
		return malformed("more than %d rules", proto.MaxRules)
	}
	return nil
}

// NetmapAssembler assembles a netmap from its parts. The zero value is ready for the first part of a netmap; after a complete
// netmap or an error, the assembler is ready for another one.
type NetmapAssembler struct {
	count counter
	nm    proto.Netmap
}

// Busy reports whether more parts are expected.
func (a *NetmapAssembler) Busy() bool { return a.count.parts > 0 }

// Add adds the next part. With the last one, it returns the netmap, validated.
func (a *NetmapAssembler) Add(part *redoubtv1.NetmapPart) (done bool, nm *proto.Netmap, err error) {
	if err := a.add(part); err != nil {
		*a = NetmapAssembler{}
		return false, nil, fmt.Errorf("netmap: %w", err)
	}
	if part.GetMore() {
		return false, nil, nil
	}
	whole := a.nm
	*a = NetmapAssembler{}
	if err := whole.Validate(); err != nil {
		return false, nil, fmt.Errorf("netmap: %w: %w", ErrMalformed, err)
	}
	return true, &whole, nil
}

func (a *NetmapAssembler) add(part *redoubtv1.NetmapPart) error {
	version, err := ToVersion(part.GetVersion())
	if err != nil {
		return err
	}
	first := !a.Busy()
	a.count.parts++
	a.count.bytes += pb.Size(part) + perElement
	a.count.peers += len(part.GetPeers())
	a.count.barred += len(part.GetBarred())
	a.count.sets += len(part.GetSets())
	for _, s := range part.GetSets() {
		a.count.members += len(s.GetMembers())
	}
	a.count.rules += len(part.GetRules())
	if err := a.count.check(); err != nil {
		return err
	}
	if first {
		h, err := toHead(part.GetHead())
		if err != nil {
			return err
		}
		a.nm = proto.Netmap{
			Version: version, Mesh: h.Mesh, Self: h.Self, Authorities: h.Authorities, Requires: h.Requires, Outage: h.Outage,
			Withheld: h.Withheld, Relays: h.Relays,
		}
	} else if part.GetHead() != nil || version != a.nm.Version {
		return malformed("a part that does not belong to the one before it")
	}
	if a.nm.Peers, err = extend(a.nm.Peers, part.GetPeers(), toPeer); err != nil {
		return err
	}
	if a.nm.Barred, err = extend(a.nm.Barred, part.GetBarred(), toBarred); err != nil {
		return err
	}
	if a.nm.Sets, err = extendSets(a.nm.Sets, part.GetSets()); err != nil {
		return err
	}
	if a.nm.Rules, err = extend(a.nm.Rules, part.GetRules(), toRule); err != nil {
		return err
	}
	return known(part)
}

// DeltaAssembler assembles a delta from its parts, as NetmapAssembler does for a netmap. Netmap.Apply checks whether the delta
// fits.
type DeltaAssembler struct {
	count counter
	d     proto.Delta
}

// Busy reports whether more parts are expected.
func (a *DeltaAssembler) Busy() bool { return a.count.parts > 0 }

// Add adds the next part. With the last one, it returns the delta.
func (a *DeltaAssembler) Add(part *redoubtv1.DeltaPart) (done bool, d *proto.Delta, err error) {
	if err := a.add(part); err != nil {
		*a = DeltaAssembler{}
		return false, nil, fmt.Errorf("delta: %w", err)
	}
	if part.GetMore() {
		return false, nil, nil
	}
	whole := a.d
	*a = DeltaAssembler{}
	return true, &whole, nil
}

func (a *DeltaAssembler) take(part *redoubtv1.DeltaPart) error {
	c := &a.count
	c.parts++
	c.bytes += pb.Size(part) + perElement
	c.peers += len(part.GetUpsertPeers()) + len(part.GetReaches()) + len(part.GetRemovePeers())
	c.barred += len(part.GetUpsertBarred()) + len(part.GetRemoveBarred())
	c.sets += len(part.GetUpsertSets()) + len(part.GetChangeSets()) + len(part.GetRemoveSets())
	for _, s := range part.GetUpsertSets() {
		c.members += len(s.GetMembers())
	}
	for _, s := range part.GetChangeSets() {
		c.members += len(s.GetAdd()) + len(s.GetRemove())
	}
	c.rules += len(part.GetUpsertRules()) + len(part.GetRemoveRules())
	return c.check()
}

func (a *DeltaAssembler) add(part *redoubtv1.DeltaPart) error {
	from, err := ToVersion(part.GetFrom())
	if err != nil {
		return err
	}
	to, err := ToVersion(part.GetTo())
	if err != nil {
		return err
	}
	first := !a.Busy()
	if err := a.take(part); err != nil {
		return err
	}
	switch {
	case first:
		a.d.From, a.d.To = from, to
		if part.GetHead() != nil {
			if a.d.Head, err = toHead(part.GetHead()); err != nil {
				return err
			}
		}
	case part.GetHead() != nil || from != a.d.From || to != a.d.To:
		return malformed("a part that does not belong to the one before it")
	}
	d := &a.d
	if d.UpsertPeers, err = extend(d.UpsertPeers, part.GetUpsertPeers(), toPeer); err != nil {
		return err
	}
	if d.Reaches, err = extend(d.Reaches, part.GetReaches(), toReachChange); err != nil {
		return err
	}
	if d.UpsertSets, err = extendSets(d.UpsertSets, part.GetUpsertSets()); err != nil {
		return err
	}
	if d.ChangeSets, err = extendChanges(d.ChangeSets, part.GetChangeSets()); err != nil {
		return err
	}
	if d.UpsertRules, err = extend(d.UpsertRules, part.GetUpsertRules(), toRule); err != nil {
		return err
	}
	if d.UpsertBarred, err = extend(d.UpsertBarred, part.GetUpsertBarred(), toBarred); err != nil {
		return err
	}
	d.RemoveBarred = append(d.RemoveBarred, toIDs(part.GetRemoveBarred())...)
	d.RemovePeers = append(d.RemovePeers, toIDs(part.GetRemovePeers())...)
	d.RemoveSets = append(d.RemoveSets, part.GetRemoveSets()...)
	d.RemoveRules = append(d.RemoveRules, part.GetRemoveRules()...)
	return known(part)
}

// extend appends decoded elements to a list.
func extend[T, M any](list []T, in []M, decode func(M) (T, error)) ([]T, error) {
	for _, m := range in {
		v, err := decode(m)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// extendSets appends sets to a list, and joins adjacent pieces of the same set.
func extendSets(list []proto.Set, in []*redoubtv1.Set) ([]proto.Set, error) {
	for _, m := range in {
		s, err := toSet(m)
		if err != nil {
			return nil, err
		}
		if n := len(list); n > 0 && list[n-1].Name == s.Name && list[n-1].Conditional == s.Conditional {
			list[n-1].Members = append(list[n-1].Members, s.Members...)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

func extendChanges(list []proto.SetChange, in []*redoubtv1.SetChange) ([]proto.SetChange, error) {
	for _, m := range in {
		c, err := toSetChange(m)
		if err != nil {
			return nil, err
		}
		if n := len(list); n > 0 && list[n-1].Name == c.Name {
			list[n-1].Add = append(list[n-1].Add, c.Add...)
			list[n-1].Remove = append(list[n-1].Remove, c.Remove...)
			continue
		}
		list = append(list, c)
	}
	return list, nil
}
