package pathmsg

import (
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// maxIdle is how many boxes are kept although they are not in use.
const maxIdle = 2048

// Boxes holds the boxes of one path key, for the life of the key: one that was forgotten and made anew would accept old messages
// once more, and if a pair of keys had two, they might use the same counter. It is not safe for concurrent use.
type Boxes struct {
	own   key.PathPrivate
	since time.Time
	all   map[boxID]*held
	idle  []boxID // not in use, for the longest time first
}

type boxID struct {
	peer key.PathPublic
	ends Ends
}

// held is a box, and how many use it.
type held struct {
	box  *Box
	uses int
}

// NewBoxes returns the Boxes of a key that was just generated.
func NewBoxes(own key.PathPrivate) *Boxes {
	return &Boxes{own: own, since: time.Now(), all: map[boxID]*held{}}
}

// Own returns the public half of the key.
func (x *Boxes) Own() key.PathPublic { return x.own.Public() }

// Get returns the box for a peer's key, bound to the Ends unless they are zero. The caller must Release it.
func (x *Boxes) Get(peer key.PathPublic, ends Ends) (*Box, error) {
	id := boxID{peer, ends}
	h := x.all[id]
	if h == nil {
		box, err := NewBox(x.own, peer, ends, time.Since(x.since))
		if err != nil {
			return nil, err
		}
		h = &held{box: box}
		x.all[id] = h
	} else if h.uses == 0 {
		x.idle = slices.DeleteFunc(x.idle, func(idle boxID) bool { return idle == id })
	}
	h.uses++
	return h.box, nil
}

// Release ends a use of a box. Only if too many are not in use is the oldest of them forgotten.
func (x *Boxes) Release(peer key.PathPublic, ends Ends) {
	id := boxID{peer, ends}
	h := x.all[id]
	if h.uses--; h.uses > 0 {
		return
	}
	if len(x.idle) == maxIdle {
		delete(x.all, x.idle[0])
		x.idle = slices.Delete(x.idle, 0, 1)
	}
	x.idle = append(x.idle, id)
}
