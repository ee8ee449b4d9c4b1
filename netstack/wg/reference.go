package wg

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Reference is the engine of golang.zx2c4.com/wireguard.
//
// It knows a peer by one key at a time, PeerConfig.Keys[0]: when that changes, the session under the old one ends, and whatever
// the peer sends before it has made a new session is lost. It counts neither handshakes nor drops.
type Reference struct {
	dev *device.Device
	tun tun.Device

	mu      sync.Mutex
	private *key.NodePrivate // nil until configured, or if that failed
	port    uint16           // as requested
	peers   map[proto.NodeID]PeerConfig
	owners  map[key.NodePublic]proto.NodeID
	since   map[key.NodePublic]time.Time // for our key and those of the peers
}

var _ Engine = (*Reference)(nil)

// PeerWatcher is a device that wants the engine's own value of each peer that a Reference creates. The simulated device does:
// the engine sets finalizers that touch channels, which the runtime forbids for channels of virtual time.
type PeerWatcher interface{ PeerMade(*device.Peer) }

// NewReference returns an engine between d and b, both of which it owns from then on. It does nothing until configured.
func NewReference(d tun.Device, b conn.Bind, log *slog.Logger) *Reference {
	return &Reference{
		dev:    device.NewDevice(d, b, logger(log)),
		tun:    tun.Unwrap(d),
		peers:  map[proto.NodeID]PeerConfig{},
		owners: map[key.NodePublic]proto.NodeID{},
		since:  map[key.NodePublic]time.Time{},
	}
}

// logger logs the device's messages at debug level: what concerns users is reported by the engine's owner.
func logger(log *slog.Logger) *device.Logger {
	say := func(format string, args ...any) {
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("wireguard", "event", fmt.Sprintf(format, args...))
		}
	}
	return &device.Logger{Verbosef: say, Errorf: say}
}

// Configure implements Engine.
func (r *Reference) Configure(private key.NodePrivate, port uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended() {
		return ErrClosed
	}
	var s script
	secret := private.Expose()
	if r.private == nil || r.private.Expose() != secret {
		s.key("private_key", secret)
	}
	if r.private == nil || r.port != port {
		s.line("listen_port", strconv.Itoa(int(port)))
	}
	if r.private != nil && r.private.Public() != private.Public() {
		delete(r.since, r.private.Public())
	}
	r.know(private.Public())
	r.private, r.port = nil, port // until all of it succeeded: a device that cannot open its sockets forgets their port
	if err := r.set(&s); err != nil {
		return fmt.Errorf("configure WireGuard: %w", err)
	}
	if err := r.dev.Up(); err != nil {
		return fmt.Errorf("start WireGuard: %w", err)
	}
	r.private = &private
	return nil
}

// set runs a script unless it is empty. The device's own errors quote lines, some of which are secret, so they are not passed
// on.
func (r *Reference) set(s *script) error {
	if s.Len() == 0 {
		return nil
	}
	err := r.dev.IpcSet(s.String())
	var ipc *device.IPCError
	if errors.As(err, &ipc) && ipc.Unwrap() != nil {
		return ipc.Unwrap()
	}
	return err
}

// RotateLocalKey implements Engine. All sessions end.
func (r *Reference) RotateLocalKey(private key.NodePrivate) error {
	r.mu.Lock()
	port := r.port
	r.mu.Unlock()
	return r.Configure(private, port)
}

// AddRemoteKey implements Engine. The session under the previous key ends.
func (r *Reference) AddRemoteKey(id proto.NodeID, k key.NodePublic) error {
	return r.changeKeys(id, func(keys []key.NodePublic) []key.NodePublic {
		return append([]key.NodePublic{k}, slices.DeleteFunc(keys, func(o key.NodePublic) bool { return o == k })...)
	})
}

// RemoveRemoteKey implements Engine.
func (r *Reference) RemoveRemoteKey(id proto.NodeID, k key.NodePublic) error {
	return r.changeKeys(id, func(keys []key.NodePublic) []key.NodePublic {
		return slices.DeleteFunc(keys, func(o key.NodePublic) bool { return o == k })
	})
}

func (r *Reference) changeKeys(id proto.NodeID, change func([]key.NodePublic) []key.NodePublic) error {
	r.mu.Lock()
	cfg, ok := r.peers[id]
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("change the keys of peer %s: there is no such peer", id)
	}
	cfg.Keys = change(slices.Clone(cfg.Keys))
	return r.SetPeer(cfg)
}

// SetPeer implements Engine.
func (r *Reference) SetPeer(cfg PeerConfig) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.check(cfg); err != nil {
		return fmt.Errorf("peer %s: %w", cfg.ID, err)
	}
	cfg.Keys, cfg.Routes, cfg.Endpoints = slices.Clone(cfg.Keys), slices.Clone(cfg.Routes), slices.Clone(cfg.Endpoints)
	var s script
	before, known := r.peers[cfg.ID]
	rekeyed := known && before.Keys[0] != cfg.Keys[0]
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = before.Endpoints
	}
	switch {
	case !known:
		s.set(cfg, nil)
	case rekeyed:
		s.remove(before.Keys[0])
		s.set(cfg, nil)
	case before.PSK == cfg.PSK && before.Addrs == cfg.Addrs && slices.Equal(before.Routes, cfg.Routes) && before.Keepalive == cfg.Keepalive &&
		sameCandidates(before.Endpoints, cfg.Endpoints):
		r.peers[cfg.ID] = cfg
		return nil
	default:
		s.set(cfg, &before)
	}
	if err := r.set(&s); err != nil {
		return errors.Join(fmt.Errorf("peer %s: %w", cfg.ID, err), r.remove(cfg.ID, cfg.Keys[0]))
	}
	if rekeyed {
		delete(r.owners, before.Keys[0])
		delete(r.since, before.Keys[0])
	}
	r.know(cfg.Keys[0])
	r.peers[cfg.ID], r.owners[cfg.Keys[0]] = cfg, cfg.ID
	if !known || rekeyed {
		r.announce(cfg.Keys[0])
	}
	return nil
}

// check returns an error if a peer cannot be configured as cfg says.
func (r *Reference) check(cfg PeerConfig) error {
	switch {
	case r.ended():
		return ErrClosed
	case cfg.ID == 0:
		return errors.New("no node id")
	case len(cfg.Keys) == 0 || cfg.Keys[0].IsZero():
		return errors.New("no node key")
	case !cfg.Addrs.V4.IsValid() && !cfg.Addrs.V6.IsValid():
		return errors.New("no address in the mesh")
	case r.private != nil && r.private.Public() == cfg.Keys[0]:
		return errors.New("it has this node's own key")
	case cfg.Keepalive < 0 || cfg.Keepalive%time.Second != 0 || cfg.Keepalive/time.Second > 65535:
		return fmt.Errorf("keepalive of %s: want whole seconds up to 65535", cfg.Keepalive)
	}
	if owner, taken := r.owners[cfg.Keys[0]]; taken && owner != cfg.ID {
		return fmt.Errorf("its node key is that of peer %s", owner)
	}
	return checkRoutes(cfg.Routes)
}

func (r *Reference) announce(k key.NodePublic) {
	if w, ok := r.tun.(PeerWatcher); ok {
		if p := r.dev.LookupPeer(device.NoisePublicKey(k.Bytes())); p != nil {
			w.PeerMade(p)
		}
	}
}

// RemovePeer implements Engine.
func (r *Reference) RemovePeer(id proto.NodeID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	cfg, ok := r.peers[id]
	if !ok {
		return nil
	}
	return r.remove(id, cfg.Keys[0])
}

func (r *Reference) remove(id proto.NodeID, keys ...key.NodePublic) error {
	if cfg, ok := r.peers[id]; ok && !slices.Contains(keys, cfg.Keys[0]) {
		keys = append(keys, cfg.Keys[0])
	}
	var s script
	for _, k := range keys {
		s.remove(k)
		delete(r.owners, k)
		delete(r.since, k)
	}
	delete(r.peers, id)
	if err := r.set(&s); err != nil {
		return fmt.Errorf("remove peer %s: %w", id, err)
	}
	return nil
}

// Probe implements Engine.
func (r *Reference) Probe(id proto.NodeID, candidates []netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended() {
		return ErrClosed
	}
	cfg, ok := r.peers[id]
	if !ok {
		return fmt.Errorf("probe peer %s: there is no such peer", id)
	}
	if len(candidates) > 0 {
		cfg.Endpoints = slices.Clone(candidates)
	}
	var s script
	s.probe(cfg)
	if err := r.set(&s); err != nil {
		return fmt.Errorf("probe peer %s: %w", id, err)
	}
	r.peers[id] = cfg
	return nil
}

// Rebind implements Engine.
func (r *Reference) Rebind() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended() {
		return ErrClosed
	}
	var err error
	if r.private != nil {
		err = r.dev.BindUpdate()
	} else { // the device has forgotten the port
		var s script
		s.line("listen_port", strconv.Itoa(int(r.port)))
		err = r.set(&s)
	}
	if err != nil {
		r.private = nil
		return fmt.Errorf("open the UDP sockets anew: %w", err)
	}
	return nil
}

// Peers implements Engine.
func (r *Reference) Peers() ([]PeerStats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := r.state()
	if err != nil {
		return nil, err
	}
	out := make([]PeerStats, 0, len(st.peers))
	for k, p := range st.peers {
		if id, ok := r.owners[k]; ok {
			p.ID, p.Keys, p.KeySince = id, 1, r.since[k]
			if time.Since(p.LastHandshake) < session.RejectAfterTime {
				p.Sessions, p.SessionSince = 1, p.LastHandshake
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b PeerStats) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// know records when a key was first known.
func (r *Reference) know(k key.NodePublic) {
	if r.since[k].IsZero() {
		r.since[k] = time.Now()
	}
}

// Active implements Engine. It returns all peers, since the device only reports all of them at once.
func (r *Reference) Active() ([]PeerStats, error) { return r.Peers() }

// Peer implements Engine.
func (r *Reference) Peer(id proto.NodeID) (PeerStats, error) {
	all, err := r.Peers()
	for _, p := range all {
		if p.ID == id {
			return p, nil
		}
	}
	return PeerStats{}, err
}

// Stats implements Engine.
func (r *Reference) Stats() (s Stats, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended() {
		return s, ErrClosed
	}
	if r.private != nil {
		k := r.private.Public()
		s.Keys = []LocalKey{{Public: k, Since: r.since[k]}}
	}
	return s, nil
}

// Port implements Engine.
func (r *Reference) Port() (uint16, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := r.state()
	return st.port, err
}

func (r *Reference) state() (state, error) {
	text, err := r.get()
	if err != nil {
		return state{}, err
	}
	return readState(text)
}

// get returns the device's state, including secrets.
func (r *Reference) get() (io.Reader, error) {
	if r.ended() {
		return nil, ErrClosed
	}
	var text bytes.Buffer
	if err := r.dev.IpcGetOperation(&text); err != nil {
		return nil, fmt.Errorf("ask WireGuard for its state: %w", err)
	}
	return &text, nil
}

// WriteUAPI implements Engine.
func (r *Reference) WriteUAPI(w io.Writer) error {
	text, err := r.get()
	if err != nil {
		return err
	}
	return publish(w, text)
}

// Done implements Engine.
func (r *Reference) Done() <-chan struct{} { return r.dev.Wait() }

func (r *Reference) ended() bool {
	select {
	case <-r.dev.Wait():
		return true
	default:
		return false
	}
}

// Close implements Engine.
func (r *Reference) Close() error {
	r.dev.Close()
	<-r.dev.Wait()
	return nil
}
