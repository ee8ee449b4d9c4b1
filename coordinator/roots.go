package coordinator

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
)

// maxRootFile is the maximum size of a certificate file.
const maxRootFile = 4 << 20

// openAttestors returns the configured attestors, strongest first.
func openAttestors(c Config) (*attest.Registry, error) {
	var makers *attest.Authorities
	var err error
	if c.TPMRoots != "" {
		if makers, err = openAuthorities("--tpm-roots", c.TPMRoots); err != nil {
			return nil, err
		}
	}
	list := []attest.Attestor{attest.NewTPM(makers)}
	if c.X509Roots != "" {
		company, err := openAuthorities("--x509-roots", c.X509Roots)
		if err != nil {
			return nil, err
		}
		list = append(list, attest.NewX509(company))
	}
	return attest.NewRegistry(append(list, attest.Token{})...)
}

// openAuthorities reads all files in a directory. It fails if one cannot be used: an authority missing by mistake would be
// noticed only by those who are refused.
func openAuthorities(flag, dir string) (*attest.Authorities, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	a := attest.NewAuthorities()
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		if !info.Mode().IsRegular() {
			continue
		}
		if info.Size() > maxRootFile {
			return nil, fmt.Errorf("%s: %s: %d bytes, at most %d", flag, path, info.Size(), maxRootFile)
		}
		file, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		if err := a.Add(file); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", flag, path, err)
		}
	}
	if a.Len() == 0 {
		return nil, fmt.Errorf("%s: %s contains no self-signed certificate; put the PEM files of the CAs there", flag, dir)
	}
	return a, nil
}
