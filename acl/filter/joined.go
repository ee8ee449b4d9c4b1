package filter

import (
	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// OutJoined judges a super-packet of the local host: count packets of one flow in one, which each will have its first
// header bytes. There is one verdict for all, and all are counted.
func (f *Filter) OutJoined(pkt []byte, count, header int) Verdict {
	v := f.Out(pkt)
	more := uint64(max(count, 1) - 1)
	switch {
	case more == 0:
	case v.Pass:
		f.addJoined(pkt, more, more*uint64(header))
	default:
		f.dropped[v.Reason].Add(more)
	}
	return v
}

// addJoined counts what a super-packet that passed is more than one packet.
func (f *Filter) addJoined(pkt []byte, packets, bytes uint64) {
	var p packet.Packet
	if packet.Parse(pkt, &p) != packet.OK {
		return
	}
	var k key
	k.of(proto.Out, &p)
	h := f.seed.hash(&k)
	s := &f.shards[h%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.passed[proto.Out].Packets += packets
	s.passed[proto.Out].Bytes += bytes
	if fl := s.find(&k, uint32(h>>32)); fl != nil {
		fl.sent[local].packets += packets
		fl.sent[local].bytes += bytes
	}
}
