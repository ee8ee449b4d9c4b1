package issuer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// File names; see the package comment.
const (
	rootKeyFile       = "root.key"
	rootNextFile      = "root.next"
	rootFile          = "root.crt"
	intermediateFile  = "intermediate.key"
	requestedFile     = "intermediate.next"
	intermediatesFile = "intermediates.crt"
	auditKeyFile      = "audit.key"
	auditPublicFile   = "audit.pub"
)

// maxFile bounds the size of a file read: a few certificates.
const maxFile = 1 << 20

const certificateBlock = "CERTIFICATE"

// files is the key directory of one mesh.
type files struct {
	dir  string
	mesh proto.MeshID
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// prepare creates the directory, or refuses one that is accessible to others.
func (f files) prepare() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory for keys: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(f.dir)); err != nil {
		return fmt.Errorf("make the directory for keys: %w", err)
	}
	info, err := os.Stat(f.dir)
	if err != nil {
		return fmt.Errorf("look at the directory for keys: %w", err)
	}
	return checkMode(f.dir, info, "700")
}

// checkMode refuses files and directories that the group or others can access.
func checkMode(path string, info os.FileInfo, want string) error {
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o, so that others on this machine can use the mesh's keys: run `chmod %s %s`",
			path, info.Mode().Perm(), want, path)
	}
	return nil
}

// read returns a file's contents; the error is os.ErrNotExist if there is no such file.
func (f files) read(name string) ([]byte, error) {
	file, err := os.Open(f.path(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file with keys or certificates", f.path(name))
	}
	if err := checkMode(f.path(name), info, "600"); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(file, maxFile))
}

// readAuthority reads a key with its certificate, which must be of this mesh.
func (f files) readAuthority(name string) (*cert.Authority, error) {
	b, err := f.read(name)
	if err != nil {
		return nil, err
	}
	a, err := cert.ParseAuthority(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.path(name), err)
	}
	if a.Mesh() != f.mesh {
		return nil, fmt.Errorf("%s belongs to mesh %s, the data to mesh %s: restore the keys that belong to the data", f.path(name), a.Mesh(), f.mesh)
	}
	return a, nil
}

// remove removes a file if it exists.
func (f files) remove(name string) error {
	if err := os.Remove(f.path(name)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return durable.SyncDir(f.dir)
}

func (f files) writeAuthority(name string, a *cert.Authority) error {
	b, err := a.MarshalPEM()
	if err != nil {
		return fmt.Errorf("write %s: %w", f.path(name), err)
	}
	if err := durable.WriteBytes(f.path(name), b); err != nil {
		return fmt.Errorf("write %s: %w", f.path(name), err)
	}
	return nil
}

// readCertificates returns the certificates in a file; none if the file does not exist.
func (f files) readCertificates(name string) (list []*x509.Certificate, err error) {
	b, err := f.read(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if list, err = parseCertificates(b); err != nil {
		return nil, fmt.Errorf("%s: %w", f.path(name), err)
	}
	return list, nil
}

func (f files) writeCertificates(name string, list []*x509.Certificate) error {
	if err := durable.WriteBytes(f.path(name), certificatesPEM(list)); err != nil {
		return fmt.Errorf("write %s: %w", f.path(name), err)
	}
	return nil
}
