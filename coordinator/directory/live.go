package directory

import (
	"net/netip"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Live is what is known of a node's connection. It is memory only: after a restart it is empty until nodes come back.
type Live struct {
	Connected bool
	LastSeen  time.Time // when it was last heard or, after it left, when that was
	Remote    netip.AddrPort
	Program   string
	OS, Arch  string
	Features  []string
	Applied   proto.Version // what its data path enforces
}

type liveness struct {
	mu    sync.Mutex
	nodes map[proto.NodeID]Live
}

func (l *liveness) init() { l.nodes = make(map[proto.NodeID]Live) }

// Live answers what is known of a node's connection; false where it was not seen since the coordinator started.
func (d *Directory) Live(id proto.NodeID) (Live, bool) {
	d.live.mu.Lock()
	defer d.live.mu.Unlock()
	l, ok := d.live.nodes[id]
	return l, ok
}

// SetLive changes what is known of a node's connection. Nodes that are not in the directory are not remembered. change must not
// call the directory.
func (d *Directory) SetLive(id proto.NodeID, change func(*Live)) {
	d.live.mu.Lock()
	defer d.live.mu.Unlock()
	if _, known := d.Snapshot().Lookup(id); !known {
		delete(d.live.nodes, id)
		return
	}
	l := d.live.nodes[id]
	change(&l)
	d.live.nodes[id] = l
}

// forget drops the liveness of nodes that are gone.
func (d *Directory) forget(s *Snapshot, ids []proto.NodeID) {
	d.live.mu.Lock()
	defer d.live.mu.Unlock()
	for _, id := range ids {
		if _, known := s.Lookup(id); !known {
			delete(d.live.nodes, id)
		}
	}
}
