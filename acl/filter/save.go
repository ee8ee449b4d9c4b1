package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// savedLife is how old saved flows may be: enough for the process to be replaced, and too little for ports to be reused.
const savedLife = 5 * time.Minute

// ErrSaved reports that bytes are not saved flows.
var ErrSaved = errors.New("not the flows of this version of the filter")

// savedHeader and savedFlow are the saved form of flows; times are in ticks relative to the moment of saving.
type savedHeader struct {
	Magic [8]byte
	At    int64 // Unix milliseconds
	Flows uint64
}

type savedFlow struct {
	Local, Remote       packet.Addr
	Ports               uint64
	Node                proto.NodeID
	State, Opened, Fins uint8
	Left, Age           uint32
	Sent                [2]savedTally
}

type savedTally struct {
	Bytes, Packets uint64
	Next, Acked    uint32
}

var savedMagic = [8]byte{'R', 'D', 'B', 'T', 'f', 'l', 'w', '1'}

// AppendFlows appends the live flows to b, in a form that RestoreFlows reads, so that replacing the process need not cut
// every connection. At is the system's time.
func (f *Filter) AppendFlows(b []byte, at time.Time) []byte {
	now := f.tick()
	start := len(b)
	header := savedHeader{Magic: savedMagic, At: at.UnixMilli()}
	b = appendFixed(b, &header)
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		for n := range s.used {
			fl := s.at(n)
			if fl.state == vacant || fl.state == dead || now >= fl.expires {
				continue
			}
			saved := savedFlow{
				Local: fl.local, Remote: fl.remote, Ports: fl.ports, Node: fl.peer.id,
				State: uint8(fl.state), Opened: uint8(fl.opened), Fins: fl.fins,
				Left: uint32(fl.expires - now), Age: uint32(now - fl.started),
			}
			for i, t := range fl.sent {
				saved.Sent[i] = savedTally{t.Bytes, t.Packets, t.next, t.acked}
			}
			b = appendFixed(b, &saved)
			header.Flows++
		}
		s.mu.Unlock()
	}
	appendFixed(b[:start], &header)
	return b
}

// RestoreFlows restores flows that were saved no longer than five minutes ago, as far as the program in force permits them
// with the same nodes, and returns how many. Existing flows stay as they are.
func (f *Filter) RestoreFlows(b []byte, at time.Time) (restored int, err error) {
	var header savedHeader
	used, err := binary.Decode(b, binary.BigEndian, &header)
	if err != nil || header.Magic != savedMagic || uint64(len(b)-used) != header.Flows*uint64(binary.Size(savedFlow{})) {
		return 0, fmt.Errorf("%d bytes: %w", len(b), ErrSaved)
	}
	passed := at.Sub(time.UnixMilli(header.At))
	if passed < 0 || passed > savedLife {
		return 0, nil
	}
	now := f.tick()
	for b = b[used:]; len(b) > 0; b = b[used:] {
		var saved savedFlow
		if used, err = binary.Decode(b, binary.BigEndian, &saved); err != nil {
			return restored, fmt.Errorf("%w: %w", ErrSaved, err)
		}
		if f.restore(&saved, tick(passed/tickLength), now) {
			restored++
		}
	}
	return restored, nil
}

// restore puts one flow back if it is valid, has not expired, and is permitted.
func (f *Filter) restore(saved *savedFlow, passed, now tick) bool {
	k := key{saved.Local, saved.Remote, saved.Ports}
	class, st, opened := classOf(k.proto()), state(saved.State), proto.Direction(saved.Opened)
	if st <= vacant || st >= dead || opened != proto.In && opened != proto.Out || saved.Ports>>40 != 0 || saved.Fins > 3 ||
		tick(saved.Left) > idleFor(class, st) || tick(saved.Left) <= passed {
		return false
	}
	h := f.seed.hash(&k)
	s, tag := &f.shards[h%shardCount], uint32(h>>32)
	s.mu.Lock()
	defer s.mu.Unlock()
	v := visit{f: f, s: s, by: f.current.Load(), key: k, tag: tag, now: now}
	node, known := v.by.find(k.remote)
	if !known || v.by.peers[node].id != saved.Node || s.find(&k, tag) != nil {
		return false
	}
	was := flow{key: k, peer: v.by.peers[node], opened: opened}
	rule, at := v.by.permits(&was)
	if !rule.passes() || v.room(was.peer) != Permitted {
		return false
	}
	fl := s.insert(&k, tag)
	fl.by, fl.peer, fl.rule = v.by, was.peer, rule
	fl.state, fl.opened, fl.class, fl.fins = st, opened, class, saved.Fins
	fl.expires = now + tick(saved.Left) - passed
	fl.started = now - passed - tick(saved.Age) // may be before tick zero; only differences count
	for i, t := range saved.Sent {
		fl.sent[i] = tally{Traffic{t.Packets, t.Bytes}, t.Next, t.Acked}
	}
	s.started++
	if rule.action == proto.Monitor {
		v.watch(fl, at)
	}
	return true
}

// appendFixed appends a value of fixed size.
func appendFixed(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.BigEndian, v)
	if err != nil {
		panic(err) // the type has no fixed size
	}
	return b
}
