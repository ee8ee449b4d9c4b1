package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// same reports whether two proofs are the same.
func (a *Attested) same(b *Attested) bool {
	return a.Kind == b.Kind && a.Device == b.Device && a.Again == b.Again && slices.Equal(a.Known, b.Known) &&
		slices.Equal(a.Selectors, b.Selectors) && slices.Equal(a.Checks, b.Checks)
}

// newMachine refuses a machine that already is a node other than the one the token replaces.
func (t *tx) newMachine(token *Token, r EnrollRequest) error {
	if r.Attested.Device == "" {
		return nil
	}
	id, ok := t.machines.Get(r.Attested.Device)
	if !ok || id == token.Replace {
		return nil
	}
	n, _ := t.state.nodes.Get(id)
	return fmt.Errorf("this machine (%s) is node %s (%s); a join code of `token create --replace %s` lets it join in that node's place: %w",
		r.Attested.Device, n.Name, id, n.Name, ErrMachineKnown)
}

// hasTPM reports whether a level requires a TPM.
func hasTPM(l cert.Level) bool { return l == cert.LevelTPMUnverified || l.AtLeast(cert.LevelTPM) }

// notLess refuses a machine that proves less than the node's machine did before, in particular a software key in place of a
// TPM.
func (t *tx) notLess(n *Node, r EnrollRequest) error {
	highest := n.Attestation.Highest
	if r.Level.AtLeast(highest) && (hasTPM(r.Level) || !hasTPM(highest)) {
		return nil
	}
	return fmt.Errorf("node %s (%s) was attested by %s, this machine by %s; an administrator can allow that (redoubt-coordinator node reset %s): %w",
		n.Name, n.ID, highest, r.Level, n.Name, ErrDowngrade)
}

// replace turns a machine into the node that the token names: same name, addresses and identity, but its own keys.
func (t *tx) replace(d *Directory, token *Token, r EnrollRequest) (*Node, error) {
	old, err := t.trustedNode(token.Replace)
	if err != nil {
		return nil, err
	}
	if err := t.notLess(old, r); err != nil {
		return nil, err
	}
	if err := t.holdBoth(r, old.ID); err != nil {
		return nil, err
	}
	for _, k := range []key.NodePublic{old.Key, old.Next} {
		if !k.IsZero() {
			if err := t.retire(k, old); err != nil {
				return nil, err
			}
		}
	}
	n := *old
	n.Device, n.Key, n.Next, n.Token, n.Level = r.Device, r.Key, key.NodePublic{}, token.ID, r.Level
	// Tickets belong to the machine, and the previous machine's quarantine does not carry over.
	n.Used, n.Released, n.Quarantine = 0, false, nil
	if n.Seed, err = d.newSeed(); err != nil {
		return nil, err
	}
	n.Hostname = strings.ToValidUTF8(r.Hostname, "?")
	n.Attestation = Attestation{Attested: r.Attested, Highest: r.Level, Since: t.now}
	t.record("token "+token.ID, audit.NodeReplace, n.ID.String(), n.Name,
		fmt.Sprintf("device key %s after %s, attested by %s after %s", n.Device, old.Device, n.Level, old.Level))
	return &n, t.spend(token, &n)
}

// Attest records a renewed proof from a node's machine or, with a lapse, why there was none: then the earlier proof no longer
// holds, though it is still asked for. It costs nothing if nothing changed.
func (d *Directory) Attest(ctx context.Context, id proto.NodeID, level cert.Level, proved Attested, lapse string) error {
	n, ok := d.Snapshot().Lookup(id)
	if ok {
		if _, changed := n.attested(level, proved, lapse); !changed {
			return nil
		}
	}
	return d.do(ctx, func(t *tx) error {
		old, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		n, changed := old.attested(level, proved, lapse)
		if !changed {
			return nil
		}
		if other, ok := t.machines.Get(n.Attestation.Device); ok && other != id {
			return fmt.Errorf("the machine of node %s (%s) shows what belongs to node %s: %w", old.Name, id, other, ErrMachineKnown)
		}
		n.Attestation.Since = t.now
		if old.Level != n.Level {
			why := lapse
			if why == "" {
				why = "proved again"
			}
			t.record("node "+id.String(), audit.NodeAttest, id.String(), n.Name, fmt.Sprintf("%s after %s: %s", n.Level, old.Level, why))
		}
		return t.setNode(n)
	})
}

// attested returns the node after a proof, or after a missing one, and reports whether anything changed.
func (n *Node) attested(level cert.Level, proved Attested, lapse string) (*Node, bool) {
	next := *n
	a := &next.Attestation
	if lapse != "" {
		if a.Lapse == lapse {
			return n, false
		}
		next.Level = cert.LevelToken
		a.Selectors, a.Checks, a.Lapse = nil, nil, lapse
		return &next, true
	}
	if n.Level == level && a.Lapse == "" && a.same(&proved) {
		return n, false
	}
	next.Level, a.Attested, a.Lapse = level, proved, ""
	if !n.Level.AtLeast(level) && !a.Highest.AtLeast(level) {
		a.Highest = level
	}
	return &next, true
}

// ResetNode forgets the highest level of a node's machine, so that a machine proving less may replace it.
func (d *Directory) ResetNode(ctx context.Context, id proto.NodeID, by string) (*Node, error) {
	var n *Node
	err := d.do(ctx, func(t *tx) error {
		old, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		if n = old; old.Attestation.Highest == cert.LevelNone {
			return nil
		}
		reset := *old
		reset.Attestation.Highest = cert.LevelNone
		n = &reset
		t.record(by, audit.NodeReset, id.String(), n.Name, "was attested by "+old.Attestation.Highest.String())
		return t.setNode(n)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Refuse records that a machine with a join token was refused, unless that is recorded often already. Without a token there is
// no record, or strangers could fill the log.
func (d *Directory) Refuse(ctx context.Context, token key.TokenPublic, hostname, reason string) error {
	known, ok := d.Snapshot().Token(token)
	if !ok {
		return nil
	}
	return d.do(ctx, func(t *tx) error {
		if t.sharedRoom(known.ID) {
			t.record("token "+known.ID, audit.NodeRefuse, known.ID, hostname, reason)
		}
		return nil
	})
}

// RefuseNode records that a node's request was refused, unless that is recorded often already.
func (d *Directory) RefuseNode(ctx context.Context, id proto.NodeID, reason string) error {
	return d.do(ctx, func(t *tx) error {
		n, err := t.knownNode(id)
		if err != nil {
			return err
		}
		if t.sharedRoom(id.String()) {
			t.record("node "+id.String(), audit.NodeRefuse, id.String(), n.Name, reason)
		}
		return nil
	})
}
