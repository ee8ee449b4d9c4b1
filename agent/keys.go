package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Where to create a device key.
const (
	KeyAuto = "auto" // in the TPM if there is one and it works
	KeyTPM  = "tpm"
	KeyFile = "file"
)

func (c *Config) completeAttestation() error {
	if c.TPM == "" {
		c.TPM = device.Off
	}
	if c.DeviceKey == "" {
		c.DeviceKey = KeyAuto
	}
	if err := device.CheckPlace(c.TPM); err != nil {
		return err
	}
	switch c.DeviceKey {
	case KeyAuto, KeyFile:
	case KeyTPM:
		if c.TPM == device.Off {
			return errors.New("the device key cannot be created in a TPM that is off; use --tpm auto or --device-key file")
		}
	default:
		return fmt.Errorf("device key %.20q: want auto, tpm or file", c.DeviceKey)
	}
	if (c.Certificate == "") != (c.CertificateKey == "") {
		return errors.New("give both --x509-cert and --x509-key, or neither")
	}
	return nil
}

// home is where keys are kept outside the state directory, and what else the machine can prove its identity with.
type home struct {
	tpm               *device.TPM // nil: none
	make              string      // where to create a device key
	certificate, file string      // the company's: files with the certificate and its key
	log               *slog.Logger
}

// openHome finds the TPM. It is an error if a TPM that was asked for by name is not there.
func openHome(c Config) (*home, error) {
	h := &home{make: c.DeviceKey, certificate: c.Certificate, file: c.CertificateKey, log: c.Log}
	if c.TPM == device.Off {
		return h, nil
	}
	t, err := device.NewTPM(c.TPM, c.EventLog)
	switch {
	case err == nil:
		h.tpm = t
	case !errors.Is(err, device.ErrNone) || c.TPM != device.Auto || c.DeviceKey == KeyTPM:
		return nil, fmt.Errorf("--tpm %s: %w", c.TPM, err)
	}
	return h, nil
}

func (h *home) close() error {
	if h.tpm == nil {
		return nil
	}
	return h.tpm.Close()
}

// newKey creates a device key in the TPM. A TPM that cannot attest is not used.
func (h *home) newKey() (device.Blob, error) {
	if _, err := h.tpm.Opening(); err != nil {
		return device.Blob{}, err
	}
	return h.tpm.NewKey()
}

// keys are the node's own keys. All of them are on the disk.
//
//	nodes:  in use │ takes over │ asked for
//
// A renewal asks for a key that is on the disk before the coordinator hears of it, and for the same key until a certificate
// names it. So a reply may be lost, and the program may die at any point in between.
type keys struct {
	dir    *state.Dir
	home   *home
	file   key.DevicePrivate // the device key, if it is in a file
	sealed device.Blob       // the device key, if it is in the TPM
	device device.Key        // nil: none yet
	nodes  []key.NodePrivate
	unread unread
	try    *try // in progress; nil: none is
}

// unread are node keys that are on the disk and that the TPM could not decrypt so far. They are not replaced while there is hope.
type unread struct {
	again   func() ([]key.NodePrivate, bool, error) // nil: there are none
	err     error
	tried   time.Time // when the last one began
	renewal bool      // the coordinator was asked to wait for them
}

// try is an attempt to read node keys.
type try struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// end waits until the attempt is over. Its result is dropped.
func (t *try) end() {
	if t != nil {
		t.cancel()
		<-t.done
	}
}

var _ device.Store = (*keys)(nil)

// open takes over the keys that were loaded.
func (k *keys) open(s *state.State) error {
	k.file, k.sealed, k.nodes = s.Device, s.Sealed, s.Nodes
	if !k.sealed.IsZero() && k.home.tpm == nil {
		return errors.New("the device key is in this machine's TPM, which is off (--tpm) or missing; without it this node " +
			"cannot prove its identity. To join again without the TPM, move the state directory away")
	}
	if k.file.IsZero() && k.sealed.IsZero() {
		return nil
	}
	if s.Again != nil {
		k.unread = unread{again: s.Again, err: s.Lost}
		k.home.log.Warn("the node keys cannot be read at the moment, and nothing passes until they are", "err", s.Lost)
		return k.makeDevice()
	}
	if s.Lost != nil {
		k.home.log.Warn("the node keys are lost; the node renews with a new key, and nothing passes until that is in use", "err", s.Lost)
	}
	return k.make()
}

// make creates the keys that are missing.
func (k *keys) make() error {
	if err := k.makeDevice(); err != nil {
		return err
	}
	if len(k.nodes) > 0 {
		return nil
	}
	return k.add()
}

// add creates a node key and appends it to the others.
func (k *keys) add() error {
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return fmt.Errorf("create a node key: %w", err)
	}
	return k.save(append(slices.Clip(k.nodes), node))
}

func (k *keys) save(nodes []key.NodePrivate) error {
	if err := k.write(nodes); err != nil {
		return err
	}
	k.nodes, k.unread = nodes, unread{}
	return nil
}

// write saves the node keys, wrapped by the TPM if that holds the device key. If the TPM cannot wrap them at the moment they
// are saved unwrapped, and the next write tries again.
func (k *keys) write(nodes []key.NodePrivate) error {
	if k.sealed.IsZero() || k.home.tpm == nil {
		return k.dir.SaveNodes(nodes)
	}
	err := k.dir.WrapNodes(nodes)
	if errors.Is(err, state.ErrWrap) {
		k.home.log.Warn("the node keys are stored unencrypted", "err", err)
		return k.dir.SaveNodes(nodes)
	}
	return err
}

func (k *keys) makeDevice() (err error) {
	if k.file.IsZero() && k.sealed.IsZero() && k.home.tpm != nil && k.home.make != KeyFile {
		sealed, err := k.home.newKey()
		switch {
		case err == nil:
			if err := k.dir.SaveSealed(sealed); err != nil {
				return err
			}
			k.sealed = sealed
		case k.home.make == KeyTPM:
			return fmt.Errorf("%w; give --device-key file to join without the TPM", err)
		default:
			k.home.log.Warn("the TPM cannot be used, so the device key is created in a file; use --device-key tpm to require the TPM", "err", err)
		}
	}
	if !k.sealed.IsZero() {
		k.device = k.home.tpm.Key(k.sealed)
		return nil
	}
	k.device, err = device.Open(k, rand.Reader)
	return err
}

// node returns the key in use; zero before there is one.
func (k *keys) node() key.NodePrivate {
	if len(k.nodes) == 0 {
		return key.NodePrivate{}
	}
	return k.nodes[0]
}

// next returns the key to ask for: one that is not in use and that the certificate does not name.
func (k *keys) next(self *identity.Self) (key.NodePrivate, error) {
	if k.unread.again != nil {
		k.unread.renewal = true
		return key.NodePrivate{}, k.unread.fault()
	}
	for _, n := range k.nodes[min(1, len(k.nodes)):] {
		if !names(self, n) {
			return n, nil
		}
	}
	if err := k.add(); err != nil {
		return key.NodePrivate{}, err
	}
	return k.nodes[len(k.nodes)-1], nil
}

// drop discards the key to ask for, because the coordinator will not accept it.
func (k *keys) drop(self *identity.Self) error {
	for i := 1; i < len(k.nodes); i++ {
		if !names(self, k.nodes[i]) {
			return k.save(slices.Delete(slices.Clone(k.nodes), i, i+1))
		}
	}
	return nil
}

// turn starts using a key and discards those before it.
func (k *keys) turn(to key.NodePublic) (key.NodePrivate, error) {
	if k.unread.again != nil {
		return key.NodePrivate{}, k.unread.fault()
	}
	i := slices.IndexFunc(k.nodes, func(n key.NodePrivate) bool { return n.Public() == to })
	if i < 0 {
		return key.NodePrivate{}, fmt.Errorf("the certificate names a node key, %s, that this machine does not have: "+
			"was its state directory restored from a copy? Nothing passes until the next renewal", to)
	}
	if i == 0 {
		return k.nodes[0], nil
	}
	nodes := slices.Clone(k.nodes[i:])
	// It is in use whatever the disk says: which of the two a restart begins with does not matter.
	k.nodes = nodes
	return nodes[0], k.write(nodes)
}

func (u unread) fault() error {
	return fmt.Errorf("the node keys cannot be read at the moment, and nothing passes until they are, or are replaced while the "+
		"coordinator is there: %w", u.err)
}

// readAgain is how long after an unsuccessful try node keys are read again.
const readAgain = 10 * time.Second

// readKeys tries again to read node keys, if that is due. A TPM may be slow to answer, or not answer at all.
func (a *Agent) readKeys() {
	u := &a.loop.keys.unread
	if now := time.Now(); u.again != nil && a.loop.keys.try == nil && now.Sub(u.tried) >= readAgain {
		again := u.again
		u.tried = now
		ctx, cancel := context.WithCancel(context.Background())
		t := &try{cancel, make(chan struct{})}
		a.loop.keys.try = t
		go func() {
			defer close(t.done)
			nodes, hope, err := again()
			// An error means that the agent is ending.
			_ = a.post(ctx, func() { a.keysRead(nodes, hope, err) })
		}()
	}
}

// keysRead handles the outcome. Keys that are still unreadable once the TPM signs for a stream with the coordinator count as lost:
// it can certify another one at once.
func (a *Agent) keysRead(nodes []key.NodePrivate, hope bool, err error) {
	k := &a.loop.keys
	u := &k.unread
	k.try.cancel()
	k.try = nil
	switch {
	case u.again == nil: // they were replaced
	case err == nil:
		k.nodes, k.unread = nodes, unread{}
		held := make([]key.NodePublic, len(nodes))
		for i, n := range nodes {
			held[i] = n.Public()
		}
		a.step(machine.KeysRead{Held: held})
	case hope && !u.renewal:
		u.err = err
	default:
		a.log.Warn("the node keys are lost; the node renews with a new key, and nothing passes until that is in use", "err", err)
		k.unread = unread{}
		if err := k.make(); err != nil {
			a.log.Warn("no new node key; the next renewal tries again", "err", err)
		}
	}
}

// names reports whether a certificate names a key.
func names(self *identity.Self, n key.NodePrivate) bool {
	return slices.ContainsFunc(self.Node.Keys, func(c cert.NodeKey) bool { return c.Public == n.Public() })
}

// DeviceKey implements device.Store.
func (k *keys) DeviceKey() (key.DevicePrivate, bool) { return k.file, !k.file.IsZero() }

// SaveDeviceKey implements device.Store.
func (k *keys) SaveDeviceKey(d key.DevicePrivate) error {
	if err := k.dir.SaveDevice(d); err != nil {
		return err
	}
	k.file = d
	return nil
}

// prover returns what this machine proves its identity with.
func (k *keys) prover() enroll.Prover {
	p := prover{certificate: k.home.certificate, file: k.home.file}
	if !k.sealed.IsZero() {
		p.tpm, p.sealed = k.home.tpm, k.sealed
	}
	return p
}
