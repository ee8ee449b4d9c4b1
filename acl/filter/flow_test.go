package filter

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestHashSpreads checks with many seeds that among keys that differ little, as those of one peer do, no shard and no part of an
// index gets much more than its share.
func TestHashSpreads(t *testing.T) {
	const keys = 256
	for name, vary := range map[string]func(k *key, n uint64){
		"remote port":    func(k *key, n uint64) { k.ports ^= n },
		"local port":     func(k *key, n uint64) { k.ports ^= n << 16 },
		"remote address": func(k *key, n uint64) { k.remote.Lo ^= n },
		"local address":  func(k *key, n uint64) { k.local.Lo ^= n },
		"IPv6 address":   func(k *key, n uint64) { k.remote.Hi ^= n << 32 },
	} {
		worst, worstHome := 0, 0
		for range 200 {
			var s seed
			for i := range s {
				s[i] = rand.Uint64()
			}
			var shards [shardCount]int
			var homes [2 * keys]int
			for n := range uint64(keys) {
				k := key{packet.AddrOf(v4(1)), packet.AddrOf(v4(2)), proto.ProtoTCP<<32 | 22<<16}
				vary(&k, n)
				h := s.hash(&k)
				shards[h%shardCount]++
				homes[(h>>32)%(2*keys)]++
			}
			for _, n := range shards {
				worst = max(worst, n)
			}
			for _, n := range homes {
				worstHome = max(worstHome, n)
			}
		}
		if worst > 3*keys/shardCount || worstHome > 12 {
			t.Errorf("%s: %d of %d keys in one shard, %d at one place", name, worst, keys, worstHome)
		}
	}
}

// TestShardAgainstMap inserts, finds and removes flows with colliding tags, and compares the shard with a map.
func TestShardAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s shard
		s.grow()
		owner := new(peer)
		known := map[uint64]*flow{}
		tagOf := func(n uint64) uint32 { return uint32(n % 7 * 0x10000001) } // few home slots, some equal tags
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			n := rapid.Uint64Range(0, 120).Draw(t, "key")
			k := key{ports: n}
			f := s.find(&k, tagOf(n))
			if f != known[n] {
				t.Fatalf("found %p for %d, want %p", f, n, known[n])
			}
			if f == nil {
				f = s.insert(&k, tagOf(n))
				f.peer, f.state = owner, opening
				owner.flows.Add(1)
				known[n] = f
			} else {
				s.remove(f)
				delete(known, n)
			}
			if s.live != len(known) || int(owner.flows.Load()) != len(known) {
				t.Fatalf("%d live, %d the peer's, want %d", s.live, owner.flows.Load(), len(known))
			}
		}
		for n, f := range known {
			k := key{ports: n}
			if s.find(&k, tagOf(n)) != f {
				t.Fatalf("lost %d", n)
			}
		}
	})
}
