package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Where a device key is made.
const (
	KeyAuto = "auto" // in the TPM if there is one that works
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
			return errors.New("the device key cannot be made in a TPM that is off; give --tpm auto, or --device-key file")
		}
	default:
		return fmt.Errorf("device key %.20q: want auto, tpm or file", c.DeviceKey)
	}
	if (c.Certificate == "") != (c.CertificateKey == "") {
		return errors.New("a certificate of the company comes with its key: give both --x509-cert and --x509-key, or neither")
	}
	return nil
}

// home is where keys live outside the state directory, and what else the machine can prove itself with.
type home struct {
	tpm               *device.TPM // nil: there is none
	make              string      // where a device key is made
	certificate, file string      // of the company: the files with the certificate and its key
	log               *slog.Logger
}

// openHome finds the TPM. One that was asked for by name must be there.
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

// newKey makes a device key in the TPM. A TPM that cannot attest is of no use for one.
func (h *home) newKey() (device.Blob, error) {
	if _, err := h.tpm.Opening(); err != nil {
		return device.Blob{}, err
	}
	return h.tpm.NewKey()
}

// keys are the node's own. Those that there are, are on the disk.
type keys struct {
	dir    *state.Dir
	home   *home
	file   key.DevicePrivate // the device key, where it is one in a file
	sealed device.Blob       // the device key, where it is one in the TPM
	device device.Key        // nil: none yet
	node   key.NodePrivate
}

var _ device.Store = (*keys)(nil)

// open takes the keys that were loaded.
func (k *keys) open(s *state.State) error {
	k.file, k.sealed, k.node = s.Device, s.Sealed, s.Node
	if !k.sealed.IsZero() && k.home.tpm == nil {
		return errors.New("the device key is in this machine's TPM, which is off (--tpm) or not there; without it this node " +
			"cannot show who it is. To join anew without it, move the state directory away")
	}
	if k.file.IsZero() && k.sealed.IsZero() {
		return nil
	}
	return k.make()
}

// make makes what is missing.
func (k *keys) make() error {
	if err := k.makeDevice(); err != nil {
		return err
	}
	if !k.node.IsZero() {
		return nil
	}
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the node key: %w", err)
	}
	if err := k.dir.SaveNode(node); err != nil {
		return err
	}
	k.node = node
	return nil
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
			k.home.log.Warn("the TPM is of no use, the device key is made in a file; give --device-key tpm to insist", "err", err)
		}
	}
	if !k.sealed.IsZero() {
		k.device = k.home.tpm.Key(k.sealed)
		return nil
	}
	k.device, err = device.Open(k, rand.Reader)
	return err
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

// prover is what this machine proves itself with.
func (k *keys) prover() enroll.Prover {
	p := prover{certificate: k.home.certificate, file: k.home.file}
	if !k.sealed.IsZero() {
		p.tpm, p.sealed = k.home.tpm, k.sealed
	}
	return p
}
