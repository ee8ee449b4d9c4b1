package machine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

const (
	// saveEvery is how old the floors on the disk may be. After a crash the grace is shorter by at most this much.
	saveEvery = 5 * time.Minute
	// retryPath and retryDisk are how long after a failure the operation is retried.
	retryPath = 5 * time.Second
	retryDisk = 30 * time.Second
	// retryRenew is how long after a failed renewal the next is tried, plus as much again at random.
	retryRenew = time.Minute
	// patience is how long the coordinator may be out of reach before the status calls it a problem.
	patience = 10 * time.Second
)

// Config configures a Machine.
type Config struct {
	// Features are the features that this program can enforce, sorted.
	Features []string
	// Program is the program's version, for messages.
	Program string
	// Rand spreads renewals.
	Rand *rand.Rand
}

// Loaded is what the disk held.
type Loaded struct {
	Wanted state.Wanted
	Join   *state.Join    // nil: none
	Self   *identity.Self // nil: not enrolled
	Netmap *proto.Netmap  // nil: none
	Floors state.Floors
	Key    key.NodePublic // the node key in use
	// Checked are signatures of peers' certificates that are known to be good.
	Checked map[cert.Signature]struct{}
}

// Machine is the state of a node. It has one owner.
type Machine struct {
	cfg    Config
	wanted state.Wanted
	join   *state.Join
	self   *identity.Self
	netmap *proto.Netmap
	floors state.Floors

	roster  *roster
	contact contact
	path    pathState
	renewal renewal
	using   key.NodePublic // the node key in use
	term    term
	routes  routes // as the engine knows them
	beyond  beyond

	selfLive  bool // our own certificate is good
	selfUntil time.Time
	enrolling bool
	missing   []string // features that the netmap requires and we lack
	unsaved   bool     // the netmap in memory is newer than the disk's
	saving    bool     // it is not known yet whether it could be saved
	savedAt   time.Time
	retryDisk time.Time
	armed     time.Time

	pending *approval // what enrolment waits for; nil: nothing

	quarantine string // why this node is isolated from all others; empty if it is not

	// Problems, for people; empty if there is none.
	refused, netmapFault, compileFault, diskFault, renewFault, keyFault string

	now time.Time
	out []Effect
}

// pathState is the machine's view of the data path.
type pathState struct {
	wanted bool // the last command was StartPath
	up     bool
	fault  string
	retry  time.Time
}

// renewal says when to renew the certificate.
type renewal struct {
	due    time.Time
	asking bool
	must   bool // nothing is served before the renewal
	// withheld means that there is no certificate until somebody has done something about it.
	withheld bool
}

// approval is what this machine waits for before it becomes a node.
type approval struct {
	Pending
	since time.Time
}

// New returns the machine of a node that has not started yet.
func New(cfg Config, l Loaded) *Machine {
	m := &Machine{
		cfg: cfg, wanted: l.Wanted, join: l.Join, self: l.Self, netmap: l.Netmap, floors: l.Floors,
		roster: newRoster(l.Floors.Sequences), contact: contact{last: l.Floors.LastContact},
		using: l.Key,
	}
	m.roster.presumed = l.Checked
	return m
}

// Errors of Check.
var (
	ErrNotEnrolled = errors.New("this machine is not in a mesh yet: run `redoubt up CODE` with a join code; " +
		"an administrator creates one with `redoubt-coordinator token create`")
	ErrRevoked = errors.New("this node was revoked: an administrator must create a new join code, " +
		"then run `redoubt up CODE` with it")
	ErrOtherMesh = errors.New("this machine is already in another mesh: run `redoubt down`, stop the agent and move its " +
		"state directory away before you join this one")
)

// Check reports why Up is not possible; nil if it is.
func (m *Machine) Check(e Up) error {
	switch {
	case m.wanted.Revoked != nil && e.Join == nil:
		return ErrRevoked
	case m.wanted.Revoked != nil:
		return m.checkRouting(e)
	case m.self == nil && e.Join == nil && (m.join == nil || m.join.Secret.IsZero()):
		return ErrNotEnrolled
	case m.self != nil && e.Join != nil && m.join != nil && m.join.Root != e.Join.Root:
		return ErrOtherMesh
	}
	return m.checkRouting(e)
}

// URLs returns the coordinators' URLs; none if the node knows none.
func (m *Machine) URLs() []string {
	if m.join == nil {
		return nil
	}
	return m.join.URLs
}

// Hostname returns the name that the user wants for the node; empty if none was given.
func (m *Machine) Hostname() string { return m.wanted.Hostname }

// Routing returns the user's settings for networks beyond the mesh.
func (m *Machine) Routing() state.Routing { return m.wanted.Routing }

// Step handles one event and returns what to do.
func (m *Machine) Step(now time.Time, e Event) []Effect {
	m.now, m.out = now, nil
	switch e.(type) {
	case Failed, PathUp, PathDown: // they may come before the failure of a save in the same list of effects
	default:
		m.saving = false
	}
	m.take(e)
	m.advance()
	m.lead()
	m.arm()
	return m.out
}

func (m *Machine) do(e ...Effect) { m.out = append(m.out, e...) }

func (m *Machine) log(message string, args ...any) { m.do(Log{Message: message, Args: args}) }

func (m *Machine) warn(message string, args ...any) {
	m.do(Log{Warn: true, Message: message, Args: args})
}

func (m *Machine) take(e Event) {
	switch e := e.(type) {
	case Start:
		m.start()
	case Up:
		m.up(e)
	case Down:
		m.down()
	case Stop:
		m.saveFloors()
	case Enrolled:
		m.enrolled(e)
	case EnrolFailed:
		m.enrolFailed(e)
	case Trouble:
		if e.Reason != m.contact.reason {
			m.warn("no coordinator", "reason", e.Reason)
		}
		m.contact.lose(m.now, e.Reason)
	case Pending:
		m.await(e)
	case Connected:
		m.connected(e)
	case Heard:
		m.contact.heard(m.now)
	case Lost:
		if e.Unread && m.renewal.asking {
			m.renewFault = e.Reason
		}
		m.lost(e.Reason)
	case Refused:
		m.refuse(e)
	case Snapshot:
		m.contact.heard(m.now)
		m.snapshot(e.Netmap)
	case Change:
		m.contact.heard(m.now)
		m.change(e.Delta)
	case Renewed:
		m.contact.heard(m.now)
		m.renewed(e.Self)
	case RenewFailed:
		m.renewFailed(e.Reason)
		if e.Withheld {
			m.renewal.withheld = true
			m.renewal.due = m.now.Add(e.After + time.Duration(m.cfg.Rand.Int64N(int64(retryRenew))))
		}
		if e.KeyUsed && m.self != nil {
			m.do(DropKey{m.self})
		}
	case PathUp:
		m.pathUp()
	case PathDown:
		m.pathDown(e.Reason)
	case KeysRead:
		m.keysRead(e.Held)
	case Failed:
		m.failed(e)
	}
}

// start continues where the last run ended.
func (m *Machine) start() {
	m.savedAt = m.now
	if m.self != nil {
		m.spend() // the last run may have ended before it did
		m.adopt(m.self)
	}
	m.offer()
	if m.self != nil && m.netmap != nil {
		if err := m.load(m.netmap); err != nil {
			m.netmapFault = err.Error()
			m.netmap = nil
		}
	}
	m.roster.presume(nil) // the signatures are about the loaded netmap, which has been processed
	if m.wanted.Up {
		m.run()
	}
}

// Checked returns the signatures of peers' certificates that were found good.
func (m *Machine) Checked() []cert.Signature { return m.roster.checkedSignatures() }

// run starts what being up requires.
func (m *Machine) run() {
	switch {
	case m.self != nil:
		m.startPath()
		if m.wanted.Revoked == nil {
			m.attach()
		}
	case m.join != nil && !m.join.Secret.IsZero():
		m.enrolling, m.refused = true, ""
		m.contact = contact{lostAt: m.now}
		m.do(Enrol{Join: *m.join, Hostname: m.wanted.Hostname})
	}
}

func (m *Machine) attach() {
	m.contact.lose(m.now, "")
	m.do(Attach{Self: m.self, Applied: m.lasting()})
}

// lasting returns the version that a stream may resume from. Naming a version acknowledges it, so none is named while it is
// not known to be on the disk.
func (m *Machine) lasting() proto.Version {
	if m.unsaved {
		return proto.Version{}
	}
	return m.version()
}

// version returns the version of the netmap in force.
func (m *Machine) version() proto.Version {
	if m.netmap == nil {
		return proto.Version{}
	}
	return m.netmap.Version
}

func (m *Machine) up(e Up) {
	fresh := m.self == nil || m.wanted.Revoked != nil
	if m.wanted.Up && !(fresh && e.Join != nil) {
		m.setRouting(e.Routing)
		return
	}
	if m.wanted.Revoked != nil {
		m.leave()
		m.forget()
	}
	if e.Join != nil && fresh {
		m.halt()
		join := *e.Join
		m.join = &join
		m.do(SaveJoin{join})
	}
	m.wanted = state.Wanted{Up: true, Hostname: e.Hostname, Routing: m.wanted.Routing, Locked: m.wanted.Locked}
	if fresh {
		m.wanted.Locked = nil
	}
	if e.Routing != nil {
		m.wanted.Routing = *e.Routing
	}
	m.do(SaveWanted{m.wanted})
	m.offer()
	m.run()
}

func (m *Machine) down() {
	if !m.wanted.Up {
		return
	}
	m.wanted.Up = false
	m.do(SaveWanted{m.wanted})
	m.saveFloors()
	m.halt()
	m.log("down")
}

// halt ends what run began.
func (m *Machine) halt() {
	m.contact.lose(m.now, "")
	m.enrolling, m.pending = false, nil
	m.renewal.asking = false
	m.do(Hang{})
	m.leave()
}

// leave closes the filter and takes the data path down.
func (m *Machine) leave() {
	if !m.path.wanted {
		return
	}
	m.closeAll()
	m.path = pathState{}
	m.do(StopPath{})
}

// closeAll lets nothing pass; flows end with resets.
func (m *Machine) closeAll() {
	m.do(Install{}, Sweep{})
}

// forget turns the node into one that was never enrolled.
func (m *Machine) forget() {
	m.self, m.netmap, m.join = nil, nil, nil
	m.floors = state.Floors{}
	m.roster = newRoster(nil)
	m.contact = contact{}
	m.renewal = renewal{}
	m.term = term{}
	m.beyond.used = nil
	m.missing, m.refused, m.netmapFault, m.compileFault, m.renewFault = nil, "", "", "", ""
	m.using, m.quarantine, m.keyFault = key.NodePublic{}, "", ""
	m.do(Hang{}, Forget{})
}

func (m *Machine) connected(e Connected) {
	if m.self == nil || !m.wanted.Up {
		return
	}
	m.contact.open, m.contact.url = true, e.URL
	m.renewal.must = e.RenewFirst
	withheld := m.renewal.withheld
	m.renewal.withheld = false
	m.isolate(e.Quarantine)
	if !e.RenewFirst {
		m.spread()
		m.serve()
	}
	if withheld {
		m.renewal.due = m.now // something may have changed
	}
	m.log("connected", "coordinator", e.URL)
}

// serve begins contact. What was good only by grace is judged again.
func (m *Machine) serve() {
	m.contact.serve(m.now)
	m.roster.regrace()
	m.roster.reorder()
	m.unlock()
}

func (m *Machine) lost(reason string) {
	m.renewal.asking, m.renewal.must = false, false
	m.roster.regrace()
	if m.contact.lose(m.now, reason) {
		m.warn("lost the coordinator", "reason", reason)
		m.saveFloors()
	}
}

func (m *Machine) refuse(e Refused) {
	if e.Kind == RefusedRevoked && m.wanted.Revoked == nil {
		// Close first and save next: the revocation must hold even if the machine goes down at this moment.
		m.wanted.Revoked = &state.Revocation{At: m.now, Message: e.Message}
		m.beyond.stale = true
		m.closeAll()
		m.do(RemovePeers{m.engineIDs()}, SaveWanted{m.wanted}, Hang{})
		m.warn("this node was revoked", "message", e.Message)
	}
	if e.Kind == RefusedLocked {
		m.lock(e.Message)
	}
	if e.Kind == RefusedQuarantined {
		m.isolate(e.Message)
	}
	m.lost(e.Message)
}

func (m *Machine) pathUp() {
	if !m.path.wanted || m.path.up {
		return
	}
	m.path = pathState{wanted: true, up: true}
	m.open()
	m.log("data path up", "version", m.version(), "peers", len(m.roster.peers)-len(m.roster.out))
	m.ack()
}

func (m *Machine) pathDown(reason string) {
	if !m.path.wanted {
		return
	}
	m.path = pathState{wanted: true, fault: reason, retry: m.now.Add(retryPath)}
	m.warn("data path down", "reason", reason)
	m.closeAll()
}

func (m *Machine) failed(e Failed) {
	switch e.Effect.(type) {
	case SetPeers, RemovePeers, Lead:
		m.pathDown(e.Reason)
	case Renew:
		m.renewFailed(e.Reason)
	case Turn, DropKey:
		m.keyFault = e.Reason
		m.warn("node key not changed", "reason", e.Reason)
	case Enrol:
		m.enrolFailed(EnrolFailed{Reason: e.Reason})
	default:
		m.unsaved, m.retryDisk = true, m.now.Add(retryDisk)
		m.diskFault = e.Reason
		m.do(Resume{m.lasting()})
		m.warn("state not written", "reason", e.Reason)
	}
}

// advance does what is due.
func (m *Machine) advance() {
	if m.self == nil {
		return
	}
	moves := m.settle()
	m.enforce(moves, m.expire())
	m.turn()
	if m.contact.open && !m.renewal.asking && (m.renewal.must && !m.renewal.withheld || !m.now.Before(m.renewal.due)) {
		m.renewal.asking = true
		m.do(Renew{m.self})
	}
	if !m.path.retry.IsZero() && !m.now.Before(m.path.retry) && m.path.wanted && !m.path.up {
		m.startPath()
	}
	if !m.retryDisk.IsZero() && !m.now.Before(m.retryDisk) {
		m.saveAll()
	}
	if m.contact.serves && !m.now.Before(m.savedAt.Add(saveEvery)) || m.roster.raised {
		m.saveFloors()
	}
}

// saveAll writes everything again after a failed write.
func (m *Machine) saveAll() {
	m.retryDisk, m.diskFault = time.Time{}, ""
	m.unsaved, m.saving = false, true
	m.do(SaveIdentity{m.self.Record}, SaveWanted{m.wanted})
	if m.join != nil {
		m.do(SaveJoin{*m.join})
	}
	m.saveFloors()
	if m.netmap != nil {
		m.do(SaveNetmap{m.netmap}, Resume{m.lasting()})
		m.ack()
	}
}

func (m *Machine) saveFloors() {
	if m.self == nil {
		return
	}
	m.savedAt = m.now
	m.floors.LastContact = m.contact.last
	if v := m.version(); m.floors.Version.Less(v) {
		m.floors.Version = v
	}
	m.floors.Sequences = m.roster.floors(m.now, m.outage(), !m.unsaved && !m.saving)
	m.do(SaveFloors{m.floors})
}

func (m *Machine) outage() time.Duration {
	if m.netmap == nil {
		return 0
	}
	return m.netmap.Outage.Grace
}

// arm asks for a Tick at the time when something is next due.
func (m *Machine) arm() {
	var next time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if m.self != nil {
		sooner(m.roster.next())
		sooner(m.selfUntil)
		if m.contact.open && !m.renewal.asking {
			sooner(m.renewal.due)
		}
		if m.contact.serves {
			sooner(m.savedAt.Add(saveEvery))
			sooner(m.turnsAt())
			if len(m.roster.kept) > 0 {
				sooner(m.contact.since.Add(Settle))
			}
		}
		if m.path.wanted && !m.path.up {
			sooner(m.path.retry)
		}
		sooner(m.retryDisk)
		sooner(m.term.next)
	}
	if !next.Equal(m.armed) {
		m.armed = next
		m.do(Arm{next})
	}
}

// live reports whether a certificate is good at the moment, and until when that holds.
func live(n *cert.Node, now time.Time, g grace) (ok bool, until time.Time) {
	begin, end := n.NotBefore.Add(-cert.Skew), n.NotAfter.Add(cert.Skew)
	switch {
	case now.Before(begin):
		return false, begin
	case now.Before(end):
		return true, end
	}
	l, ok := g.covers(begin, end, now)
	return ok, l.until
}

func sameIdentity(a, b proto.Identity) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Addrs == b.Addrs && a.User == b.User && slices.Equal(a.Tags, b.Tags)
}

// missingFeatures lists the features that a netmap requires and this program lacks.
func (m *Machine) missingFeatures(nm *proto.Netmap) (missing []string) {
	for _, f := range nm.Requires {
		if _, ok := slices.BinarySearch(m.cfg.Features, f); !ok {
			missing = append(missing, f)
		}
	}
	return missing
}

// program compiles what to enforce, leaving out some peers and assigning the held routes to nobody; nil if nothing may pass.
func (m *Machine) program(without map[proto.NodeID]bool, held []netip.Prefix) *filter.Program {
	m.compileFault = ""
	if m.netmap == nil || m.barred() || !m.selfLive || len(m.missing) > 0 || !m.path.up {
		return nil
	}
	rules := filter.Ruleset{Version: m.netmap.Version, Mesh: m.netmap.Mesh, Self: m.self.Node.Identity}
	m.expire()
	rules.Routes = m.routes.list(held)
	rules.Sets, rules.Rules = m.term.hold(m.netmap)
	for _, p := range m.roster.sorted() {
		if p.live != nil && !without[p.claim.ID] {
			rules.Peers = append(rules.Peers, p.live.node.Identity)
		}
	}
	p, err := filter.Compile(rules)
	if err != nil {
		m.compileFault = fmt.Sprintf("netmap %v cannot be enforced: %v", m.netmap.Version, err)
		m.warn("netmap cannot be enforced", "version", m.netmap.Version, "reason", err)
		return nil
	}
	return p
}
