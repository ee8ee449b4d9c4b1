package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// relayPermit says who may use a relay: nodes with valid certificates for which the coordinator says whom they may meet. It
// grants no grace, and what the coordinator said holds no longer than the relay's own certificate.
type relayPermit struct {
	now  func() time.Time
	view atomic.Pointer[relayView]
	leaf atomic.Pointer[tls.Certificate] // shown by the relay
}

type relayView struct {
	verifier *cert.Verifier
	until    time.Time                       // when trust in all nodes ends
	meets    map[proto.NodeID][]proto.NodeID // sorted
}

// set installs who may meet whom, and returns the nodes for which that changed.
func (p *relayPermit) set(self *identity.Self, nm *proto.Netmap) (changed []proto.NodeID) {
	next := &relayView{verifier: self.Verifier, until: self.Node.NotAfter.Add(cert.Skew)}
	if nm != nil {
		next.meets = make(map[proto.NodeID][]proto.NodeID, len(nm.Sets))
		for i := range nm.Sets {
			if id, err := proto.ParseNodeID(nm.Sets[i].Name); err == nil {
				next.meets[id] = nm.Sets[i].Members
			}
		}
	}
	before := p.view.Swap(next)
	if before == nil {
		return nil
	}
	for id, members := range before.meets {
		if now, ok := next.meets[id]; !ok || !slices.Equal(now, members) {
			changed = append(changed, id)
		}
	}
	return changed
}

// Admit implements relay.Permit.
func (p *relayPermit) Admit(certificate []byte) (proto.NodeID, time.Time, error) {
	n, err := p.view.Load().verifier.Node(certificate, p.now())
	if err != nil {
		return 0, time.Time{}, err
	}
	if !p.Trusted(n.ID) {
		return 0, time.Time{}, errors.New("the coordinator does not name node " + n.ID.String())
	}
	// Sessions are ended by this machine's clock.
	return n.ID, time.Now().Add(n.NotAfter.Add(cert.Skew).Sub(p.now())), nil
}

// Trusted implements relay.Permit.
func (p *relayPermit) Trusted(id proto.NodeID) bool {
	v := p.view.Load()
	_, ok := v.meets[id]
	return ok && p.now().Before(v.until)
}

// all returns the nodes that the coordinator named.
func (p *relayPermit) all() []proto.NodeID {
	return slices.Collect(maps.Keys(p.view.Load().meets))
}

// Meet implements relay.Permit.
func (p *relayPermit) Meet(a, b proto.NodeID) bool {
	v := p.view.Load()
	_, ok := slices.BinarySearch(v.meets[a], b)
	return ok && p.Trusted(b)
}

// configure returns the TLS configuration for one connection.
func (p *relayPermit) configure(*tls.ClientHelloInfo) (*tls.Config, error) {
	leaf := p.leaf.Load()
	if leaf == nil {
		return nil, errors.New("relay: no certificate")
	}
	return cert.ServerConfig(*leaf, x509.NewCertPool(), func(chain [][]byte) error {
		n, err := p.view.Load().verifier.PeerNode(chain, p.now())
		if err == nil && n.Relay {
			err = cert.ErrRole
		}
		return err
	}), nil
}
