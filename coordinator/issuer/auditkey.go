package issuer

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/durable"
)

const (
	privateBlock = "PRIVATE KEY"
	publicBlock  = "PUBLIC KEY"
)

// AuditSigner returns the signer of audit log checkpoints. It creates the key if there is none; the audit log records that the
// key changed. The public half is written to a file next to it, for verifying checkpoints elsewhere.
func (i *Issuer) AuditSigner() (*audit.Signer, error) {
	key, err := i.files.readSigningKey(auditKeyFile)
	if errors.Is(err, os.ErrNotExist) {
		if _, key, err = ed25519.GenerateKey(i.config.Rand); err == nil {
			err = i.files.writeSigningKey(auditKeyFile, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("issuer: key of the audit log: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("issuer: key of the audit log: %w", err)
	}
	if err := durable.WriteBytes(i.files.path(auditPublicFile), pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der})); err != nil {
		return nil, fmt.Errorf("issuer: write %s: %w", i.files.path(auditPublicFile), err)
	}
	return audit.NewSigner(string(i.config.Mesh), key), nil
}

func (f files) readSigningKey(name string) (ed25519.PrivateKey, error) {
	b, err := f.read(name)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != privateBlock || len(rest) != 0 {
		return nil, fmt.Errorf("%s does not contain exactly one private key in PEM: restore the right file", f.path(name))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path(name), err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s contains a key that is not Ed25519: restore the right file", f.path(name))
	}
	return key, nil
}

func (f files) writeSigningKey(name string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := durable.WriteBytes(f.path(name), pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der})); err != nil {
		return fmt.Errorf("write %s: %w", f.path(name), err)
	}
	return nil
}
