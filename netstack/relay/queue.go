package relay

import (
	"encoding/binary"
	"sync"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// quantum is how many bytes of one source are sent before the next source's turn.
const quantum = 1<<16 + relaymsg.FrameSize

// queue holds frames for one destination, up to limit bytes of packets, and serves their sources in turn. When it is full, it
// drops the oldest frame of the source that has the most bytes in it. Control frames are kept separately, and go first.
type queue struct {
	limit   int
	bytes   int
	sources []*source // in the order of their turns
	control [][]byte
	dropped uint64
}

// maxControl is how many control frames may wait for a destination.
const maxControl = 64

type source struct {
	id     proto.NodeID
	frames []*frame // oldest first
	bytes  int
	credit int
}

// frame is an encoded frame, or the packets of a received one, in reused memory.
type frame struct {
	b []byte
	// For a received frame: the size of each packet but the last, and whose they are.
	size int
	via  bind.Via
}

var frames = sync.Pool{New: func() any { return new(frame) }}

func newFrame() *frame {
	f := frames.Get().(*frame) //nolint:errcheck // nothing else is put there
	f.b = f.b[:0]
	return f
}

func (f *frame) free() { frames.Put(f) }

// setLength writes the number of bytes after the header into the header of a frame of packets.
func (f *frame) setLength() { binary.BigEndian.PutUint32(f.b[4:], uint32(len(f.b)-relaymsg.FrameSize)) }

// put adds a frame of a source.
func (q *queue) put(from proto.NodeID, f *frame) {
	var s *source
	for _, x := range q.sources {
		if x.id == from {
			s = x
			break
		}
	}
	if s == nil {
		s = &source{id: from, credit: quantum}
		q.sources = append(q.sources, s)
	}
	s.frames = append(s.frames, f)
	s.bytes += len(f.b)
	q.bytes += len(f.b)
	for q.bytes > q.limit {
		q.drop()
	}
}

// putControl adds a control frame; it is lost if too many are waiting.
func (q *queue) putControl(b []byte) {
	if len(q.control) < maxControl {
		q.control = append(q.control, b)
	}
}

// drop removes the oldest frame of the source with the most bytes.
func (q *queue) drop() {
	most := 0
	for i, s := range q.sources {
		if s.bytes > q.sources[most].bytes {
			most = i
		}
	}
	q.pop(most).free()
	q.dropped++
}

// pop removes and returns the oldest frame of a source.
func (q *queue) pop(i int) *frame {
	s := q.sources[i]
	f := s.frames[0]
	s.frames[0] = nil
	s.frames = s.frames[1:]
	s.bytes -= len(f.b)
	q.bytes -= len(f.b)
	if len(s.frames) == 0 {
		q.sources = append(q.sources[:i], q.sources[i+1:]...)
	}
	return f
}

// take appends frames to b, at least one if there is any, until b has enough bytes.
func (q *queue) take(b []byte, enough int) []byte {
	for _, c := range q.control {
		b = append(b, c...)
	}
	q.control = q.control[:0]
	for len(q.sources) > 0 && len(b) < enough {
		s := q.sources[0]
		n := len(s.frames[0].b)
		if n > s.credit {
			s.credit += quantum
			q.sources = append(q.sources[1:], s)
			continue
		}
		s.credit -= n
		f := q.pop(0)
		b = append(b, f.b...)
		f.free()
	}
	return b
}

// clear frees all memory.
func (q *queue) clear() {
	for len(q.sources) > 0 {
		q.pop(0).free()
	}
	q.control = nil
}
