package device

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// TPM is a TPM 2.0. It is opened when first needed, and again after the connection has broken. Its methods may be called
// from any goroutine.
type TPM struct {
	place    string
	eventLog string // path; empty: none
	open     func() (transport.TPMCloser, error)

	mu       sync.Mutex
	t        transport.TPMCloser // nil: not open
	device   *object             // the device key loaded last; nil: none
	wrapping wrapping            // the wrapping key used last
	closed   bool
}

// NewTPM finds a TPM without sending it a command. Without one the error is ErrNone.
func NewTPM(place, eventLog string) (*TPM, error) {
	open, err := opener(place)
	if err != nil {
		return nil, err
	}
	return &TPM{place: place, eventLog: eventLog, open: open}, nil
}

// Close releases what is held of the TPM.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.t == nil {
		return nil
	}
	t.unload()
	err := t.t.Close()
	t.t = nil
	return err
}

// object is a loaded key.
type object struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPM2BPublic
	of     key.DevicePublic // zero: not a device key
}

func (o *object) named() tpm2.NamedHandle {
	return tpm2.NamedHandle{Handle: o.handle, Name: o.name}
}

// persistent reports whether the key is persistent, and so takes none of the few transient slots.
func (o *object) persistent() bool { return o.handle>>24 == tpm2.TPMHandle(tpm2.TPMHTPersistent) }

// do calls f with the TPM open. If the TPM has lost what it held, as after a reset, or can no longer be reached, do reopens
// it and calls f once more.
func (t *TPM) do(f func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for again := false; ; again = true {
		err := t.connect()
		if err == nil {
			err = f()
		}
		if err == nil {
			return nil
		}
		var rc tpm2.TPMRC
		answered := errors.As(err, &rc)
		if answered && !errors.Is(err, tpm2.TPMRCHandle) && !errors.Is(err, tpm2.TPMRCReferenceH0) && !errors.Is(err, tpm2.TPMRCObjectMemory) ||
			again || t.closed {
			return fmt.Errorf("TPM (%s): %w", t.place, err)
		}
		t.drop()
	}
}

var errClosed = errors.New("closed")

func (t *TPM) connect() error {
	if t.closed {
		return errClosed
	}
	if t.t != nil {
		return nil
	}
	c, err := t.open()
	if err != nil {
		return err
	}
	t.t = patient{c}
	if err := t.tidy(); err != nil {
		t.drop()
		return err
	}
	return nil
}

// drop discards a connection that is no longer usable.
func (t *TPM) drop() {
	if t.t != nil {
		_ = t.t.Close() // it failed already
	}
	t.t, t.device = nil, nil
}

// tidy flushes what a crash left. Where the TPM is shared, others' keys are not visible here; sessions would be.
func (t *TPM) tidy() error {
	ranges := []uint32{uint32(tpm2.TPMHTTransient) << 24}
	if InSoftware(t.place) {
		ranges = append(ranges, uint32(tpm2.TPMHTHMACSession)<<24, uint32(tpm2.TPMHTPolicySession)<<24)
	}
	for _, first := range ranges {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 32}.Execute(t.t)
		if err != nil {
			return err
		}
		list, err := r.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range list.Handle {
			t.flush(&object{handle: h})
		}
	}
	return nil
}

// flush frees a slot. It ignores errors: an object that no longer exists takes none.
func (t *TPM) flush(o *object) {
	if o != nil && !o.persistent() {
		_, _ = tpm2.FlushContext{FlushHandle: o.handle}.Execute(t.t)
	}
}

func (t *TPM) unload() {
	t.flush(t.device)
	t.device = nil
}

// primary creates a primary key; the same template gives the same key.
func (t *TPM) primary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*object, error) {
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(t.t)
	if err != nil {
		return nil, err
	}
	return &object{handle: r.ObjectHandle, name: r.Name, public: r.OutPublic}, nil
}

// resident returns the key that the TPM keeps at a handle; nil if there is none.
func (t *TPM) resident(handle tpm2.TPMHandle) (*object, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCReferenceH0) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &object{handle: handle, name: r.Name, public: r.OutPublic}, nil
}

// storageRoot is the handle where systems keep the storage root key.
const storageRoot tpm2.TPMHandle = 0x81000001

// roots return the storage roots that a device key may be a child of: the one that the system keeps, if any, and the one
// that is created from the usual template.
func (t *TPM) roots() []func() (*object, error) {
	return []func() (*object, error){
		func() (*object, error) { return t.resident(storageRoot) },
		func() (*object, error) { return t.primary(tpm2.TPMRHOwner, tpm2.ECCSRKTemplate) },
	}
}

// signing is the template of a P-256 signing key; a restricted one signs only what its TPM attests.
func signing(restricted bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
	}
}

// under calls f with each storage root until it succeeds.
func (t *TPM) under(f func(parent *object) error) error {
	var failed []error
	for _, root := range t.roots() {
		parent, err := root()
		if parent == nil && err == nil {
			continue
		}
		if err == nil {
			err = f(parent)
			t.flush(parent)
		}
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// NewKey creates a device key.
func (t *TPM) NewKey() (b Blob, err error) {
	err = t.do(func() error {
		err := t.under(func(parent *object) (err error) {
			b, err = t.create(parent)
			return err
		})
		if err != nil {
			return fmt.Errorf("create the device key: %w", err)
		}
		return nil
	})
	return b, err
}

func (t *TPM) create(parent *object) (Blob, error) {
	r, err := tpm2.Create{ParentHandle: parent.named(), InPublic: tpm2.New2B(signing(false))}.Execute(t.t)
	if err != nil {
		return Blob{}, err
	}
	return newBlob(tpm2.Marshal(r.OutPublic), tpm2.Marshal(r.OutPrivate))
}

// load makes sure that a device key is loaded.
func (t *TPM) load(b Blob) error {
	if t.device != nil && t.device.of == b.device {
		return nil
	}
	t.unload()
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b.public)
	if err != nil {
		return err
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](b.private)
	if err != nil {
		return err
	}
	err = t.under(func(parent *object) error {
		r, err := tpm2.Load{ParentHandle: parent.named(), InPrivate: *private, InPublic: *public}.Execute(t.t)
		if err == nil {
			t.device = &object{handle: r.ObjectHandle, name: r.Name, public: *public, of: b.device}
		}
		return err
	})
	if err == nil {
		return nil
	}
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return fmt.Errorf("the device key belongs to another TPM, or this one was cleared; move the state directory away and enrol again: %w", err)
	}
	return fmt.Errorf("load the device key: %w", err)
}

// sealedKey is a device key in the TPM.
type sealedKey struct {
	t *TPM
	b Blob
}

// Key returns the device key of a blob.
func (t *TPM) Key(b Blob) Key { return sealedKey{t, b} }

// Device implements Key.
func (k sealedKey) Device() key.DevicePublic { return k.b.device }

// Public implements crypto.Signer.
func (k sealedKey) Public() crypto.PublicKey { return k.b.device.ECDSA() }

// Sign implements crypto.Signer over a SHA-256 digest.
func (k sealedKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("sign: a device key signs SHA-256 digests only")
	}
	err = k.t.do(func() error {
		if err := k.t.load(k.b); err != nil {
			return err
		}
		r, err := tpm2.Sign{
			KeyHandle: k.t.device.named(), Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(k.t.t)
		if err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		signature, err = asn1Signature(&r.Signature)
		return err
	})
	return signature, err
}

// asn1Signature encodes a signature in the only form that device keys use.
func asn1Signature(s *tpm2.TPMTSignature) ([]byte, error) {
	e, err := s.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("the TPM signed something other than requested: %w", err)
	}
	return key.DeviceSignature(new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer))
}
