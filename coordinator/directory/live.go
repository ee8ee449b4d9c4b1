package directory

import (
	"net/netip"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Live is the state of a node's connection. It is kept in memory only: after a restart it is empty until nodes reconnect.
type Live struct {
	Connected bool
	LastSeen  time.Time // when it was last heard or, once disconnected, when it left
	Remote    netip.AddrPort
	Program   string
	OS, Arch  string
	Features  []string
	Applied   proto.Version // the version its data path enforces
}

type liveness struct {
	mu    sync.Mutex
	nodes map[proto.NodeID]Live
}

func (l *liveness) init() { l.nodes = make(map[proto.NodeID]Live) }

// Live returns the state of a node's connection; ok is false if it was not seen since the coordinator started.
func (d *Directory) Live(id proto.NodeID) (Live, bool) {
	d.live.mu.Lock()
	defer d.live.mu.Unlock()
	l, ok := d.live.nodes[id]
	return l, ok
}

// SetLive changes the state of a node's connection. Nodes that are not in the directory are not remembered. change must not
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

// forget drops the liveness of deleted nodes.
func (d *Directory) forget(s *Snapshot, ids []proto.NodeID) {
	d.live.mu.Lock()
	defer d.live.mu.Unlock()
	for _, id := range ids {
		if _, known := s.Lookup(id); !known {
			delete(d.live.nodes, id)
		}
	}
}
