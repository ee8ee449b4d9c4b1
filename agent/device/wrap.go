package device

import (
	"bytes"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/chacha20poly1305"
)

// Wrapped secrets are encrypted with a key that the TPM seals, under its storage root and bound to no PCRs: a firmware
// update must not make them unreadable. The TPM is asked for the key once.
//
//	wrapped = asn1(public, private: the sealed key, as the TPM gave it; nonce; XChaCha20-Poly1305(secret))

type wrapRecord struct{ Public, Private, Nonce, Sealed []byte }

// wrapPurpose prevents a secret wrapped for one purpose from being used for another.
const wrapPurpose = "redoubt node key v1"

// wrapping is a wrapping key, and its sealed form.
type wrapping struct {
	public, private []byte
	key             []byte // nil: there is none yet
}

// ErrWrapped reports that the input was not produced by Wrap.
var ErrWrapped = errors.New("not wrapped by this program")

// Wrap encrypts a secret so that only this TPM can decrypt it.
func (t *TPM) Wrap(secret []byte) ([]byte, error) {
	w, err := t.wrapKey()
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(w.key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return asn1.Marshal(wrapRecord{w.public, w.private, nonce, aead.Seal(nil, nonce, secret, []byte(wrapPurpose))})
}

// Unwrap decrypts what Wrap returned.
func (t *TPM) Unwrap(wrapped []byte) ([]byte, error) {
	r, err := parseWrapped(wrapped)
	if err != nil {
		return nil, err
	}
	w, err := t.unsealed(r)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(w.key)
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, r.Nonce, r.Sealed, []byte(wrapPurpose))
	if err != nil {
		return nil, fmt.Errorf("%w, or changed since", ErrWrapped)
	}
	return secret, nil
}

// Lost reports whether an error of Unwrap is final: the TPM refused what it was given, because another TPM sealed it, this one was
// cleared or the file was changed. After other errors, as of a TPM that does not answer, a later call may succeed.
func Lost(err error) bool {
	var each interface{ Unwrap() []error } // of the storage roots
	if errors.As(err, &each) {
		return !slices.ContainsFunc(each.Unwrap(), func(one error) bool { return !Lost(one) })
	}
	var code tpm2.TPMRC
	if !errors.As(err, &code) {
		return errors.Is(err, ErrWrapped)
	}
	var refused tpm2.TPMFmt1Error
	if !errors.As(code, &refused) {
		return errors.Is(code, tpm2.TPMRCSensitive)
	}
	parameter, _ := refused.Parameter()
	return parameter
}

func parseWrapped(b []byte) (wrapRecord, error) {
	var r wrapRecord
	rest, err := asn1.Unmarshal(b, &r)
	if err != nil || len(rest) != 0 || len(r.Public) > maxBlob || len(r.Private) > maxBlob || len(r.Nonce) != chacha20poly1305.NonceSizeX {
		return wrapRecord{}, ErrWrapped
	}
	return r, nil
}

// wrapKey returns the key to wrap with, creating it when first needed.
func (t *TPM) wrapKey() (w wrapping, err error) {
	fresh := make([]byte, chacha20poly1305.KeySize)
	if _, err := rand.Read(fresh); err != nil {
		return wrapping{}, err
	}
	err = t.do(func() error {
		if t.wrapping.key != nil {
			w = t.wrapping
			return nil
		}
		return t.under(func(parent *object) error {
			r, err := tpm2.Create{
				ParentHandle: parent.named(), InPublic: tpm2.New2B(sealing),
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: fresh}),
				}},
			}.Execute(t.t)
			if err != nil {
				return fmt.Errorf("seal a key: %w", err)
			}
			w = wrapping{public: tpm2.Marshal(r.OutPublic), private: tpm2.Marshal(r.OutPrivate), key: fresh}
			t.wrapping = w
			return nil
		})
	})
	return w, err
}

// unsealed returns the key that a record was wrapped with.
func (t *TPM) unsealed(of wrapRecord) (w wrapping, err error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](of.Public)
	if err != nil {
		return wrapping{}, ErrWrapped
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](of.Private)
	if err != nil {
		return wrapping{}, ErrWrapped
	}
	err = t.do(func() error {
		if t.wrapping.key != nil && bytes.Equal(t.wrapping.private, of.Private) && bytes.Equal(t.wrapping.public, of.Public) {
			w = t.wrapping
			return nil
		}
		t.unload() // the TPM has few slots
		return t.under(func(parent *object) error {
			l, err := tpm2.Load{ParentHandle: parent.named(), InPrivate: *private, InPublic: *public}.Execute(t.t)
			if err != nil {
				return fmt.Errorf("load a sealed key: %w", err)
			}
			o := &object{handle: l.ObjectHandle, name: l.Name}
			defer t.flush(o)
			u, err := tpm2.Unseal{ItemHandle: o.named()}.Execute(t.t)
			if err != nil {
				return fmt.Errorf("unseal a key: %w", err)
			}
			if len(u.OutData.Buffer) != chacha20poly1305.KeySize {
				return ErrWrapped
			}
			w = wrapping{public: of.Public, private: of.Private, key: u.OutData.Buffer}
			t.wrapping = w
			return nil
		})
	})
	return w, err
}

// sealing is the template of data that the TPM keeps secret for users of its storage root.
var sealing = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
}
