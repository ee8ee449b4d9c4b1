package issuer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Offline roots. The key leaves this machine encrypted with a passphrase (Seal, then Forget) and never returns. What it has to
// sign travels instead:
//
//	coordinator                                   machine with the key
//	Request: a key for the next intermediate,
//	  kept in intermediate.next
//	  └── request: PKCS #10, the root, the
//	      intermediates in use ───────────────►   Sign
//	Install ◄──────────────────────────────────     └── answer: the intermediate; for a new root also that root,
//	  intermediate.key; intermediate.next goes          its cross-signature, and its cross-signatures of the intermediates in use

const requestBlock = "CERTIFICATE REQUEST"

// MinPassphrase is the minimum length of a passphrase, in bytes.
const MinPassphrase = 12

// sealWork is the work factor of scrypt, as a power of two: about a second and 256 MiB. Tests use less.
var sealWork = 18

// maxSealWork bounds the work that a file may demand from whoever opens it.
const maxSealWork = 22

// Errors of offline roots.
var (
	ErrPassphrase = errors.New("the passphrase is wrong")
	ErrRequest    = errors.New("not a request of this mesh")
	ErrAnswer     = errors.New("not the answer to this coordinator's request")
)

// Seal encrypts a root's key and certificate with a passphrase, in the format of age.
func Seal(root *cert.Authority, passphrase string) ([]byte, error) {
	if len(passphrase) < MinPassphrase {
		return nil, fmt.Errorf("the passphrase has %d characters: want %d or more", len(passphrase), MinPassphrase)
	}
	plain, err := root.MarshalPEM()
	if err != nil {
		return nil, err
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("seal the root's key: %w", err)
	}
	recipient.SetWorkFactor(sealWork)
	var b bytes.Buffer
	text := armor.NewWriter(&b)
	w, err := age.Encrypt(text, recipient)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = errors.Join(w.Close(), text.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("seal the root's key: %w", err)
	}
	return b.Bytes(), nil
}

// Unseal decrypts the output of Seal.
func Unseal(sealed []byte, passphrase string) (*cert.Authority, error) {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("open the root's key: %w", err)
	}
	identity.SetMaxWorkFactor(maxSealWork)
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), identity)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, ErrPassphrase
	}
	if err != nil {
		return nil, fmt.Errorf("open the root's key: not a file written by `root export --offline`: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err != nil {
		return nil, fmt.Errorf("open the root's key: %w", err)
	}
	root, err := cert.ParseAuthority(plain)
	if err != nil {
		return nil, fmt.Errorf("open the root's key: %w", err)
	}
	return root, nil
}

// ReadRoot reads the root's key from a coordinator's key directory on this machine, such as DATA/pki, in order to move it away;
// digest identifies it to Forget.
func ReadRoot(dir string) (root *cert.Authority, digest [32]byte, err error) {
	f := files{dir: dir}
	b, err := f.read(rootKeyFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, digest, fmt.Errorf("%w: there is no %s (is --data what the coordinator runs with?)", ErrRootAway, f.path(rootKeyFile))
	}
	if err == nil {
		root, err = cert.ParseAuthority(b)
	}
	if err != nil {
		return nil, digest, fmt.Errorf("%s: %w", filepath.Join(dir, rootKeyFile), err)
	}
	return root, sha256.Sum256(b), nil
}

// Forget removes the root's key from this machine. digest, the hash of its file, proves that the caller has read it.
func (i *Issuer) Forget(digest [32]byte) error {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	if _, err := i.rootKey(); errors.Is(err, os.ErrNotExist) {
		return ErrRootAway
	} else if err != nil {
		return err
	}
	b, err := i.files.read(rootKeyFile)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); subtle.ConstantTimeCompare(sum[:], digest[:]) != 1 {
		return fmt.Errorf("%s is not the key that was exported: export it again", i.files.path(rootKeyFile))
	}
	return i.files.remove(rootKeyFile)
}

// Request returns a request for the next intermediate. Until its answer is installed, further requests are for the same key.
func (i *Issuer) Request() ([]byte, error) {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	signer, err := i.files.readRequested()
	if errors.Is(err, os.ErrNotExist) {
		if signer, err = key.NewDevice(i.config.Rand); err == nil {
			err = i.files.writeRequested(signer)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key of the next intermediate: %w", err)
	}
	der, err := x509.CreateCertificateRequest(i.config.Rand, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "Redoubt mesh intermediate"},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: string(i.config.Mesh)}},
	}, signer)
	if err != nil {
		return nil, fmt.Errorf("ask for the next intermediate: %w", err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der})
	return append(b, certificatesPEM(append([]*x509.Certificate{i.trusted().newest}, i.intermediates()...))...), nil
}

func (f files) readRequested() (key.DevicePrivate, error) {
	b, err := f.read(requestedFile)
	if err != nil {
		return key.DevicePrivate{}, err
	}
	signer, err := key.ParseDevicePEM(b)
	if err != nil {
		return key.DevicePrivate{}, fmt.Errorf("%s: %w", f.path(requestedFile), err)
	}
	return signer, nil
}

func (f files) writeRequested(signer key.DevicePrivate) error {
	b, err := signer.MarshalPEM()
	if err != nil {
		return err
	}
	return durable.WriteBytes(f.path(requestedFile), b)
}

// finishRequest removes the key of a request whose answer was installed.
func (i *Issuer) finishRequest() error {
	signer, err := i.files.readRequested()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if current := i.authority(); current != nil && signer.Device().ECDSA().Equal(current.Certificate().PublicKey) {
		return i.files.remove(requestedFile)
	}
	return nil
}

// Asked is a parsed request, to be signed.
type Asked struct {
	Mesh          proto.MeshID
	Key           [32]byte // SHA-256 of the public key
	Root          *x509.Certificate
	Intermediates []*x509.Certificate
	csr           *x509.CertificateRequest
}

// ParseRequest parses the output of Request. Its input is untrusted.
func ParseRequest(b []byte) (Asked, error) {
	if len(b) > maxFile {
		return Asked{}, fmt.Errorf("%w: %d bytes, at most %d", ErrRequest, len(b), maxFile)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != requestBlock {
		return Asked{}, fmt.Errorf("%w: it does not begin with a certificate request", ErrRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	list, err := parseCertificates(rest)
	if err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if len(list) == 0 || len(list) > proto.MaxAuthorities || len(csr.URIs) != 1 {
		return Asked{}, fmt.Errorf("%w: want one mesh, and its root with the intermediates that are in use", ErrRequest)
	}
	root, mesh, err := cert.ParseRoot(list[0].Raw)
	if err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if csr.URIs[0].String() != "spiffe://"+string(mesh) {
		return Asked{}, fmt.Errorf("%w: it asks for %.100q, and the root is of mesh %s", ErrRequest, csr.URIs[0], mesh)
	}
	v, err := cert.NewVerifier(mesh, []*x509.Certificate{root})
	if err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for _, c := range list[1:] {
		if err := v.AddIntermediates([][]byte{c.Raw}); err != nil {
			return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	if _, err := key.DeviceFromPublic(csr.PublicKey); err != nil {
		return Asked{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return Asked{
		Mesh: mesh, Key: sha256.Sum256(csr.RawSubjectPublicKeyInfo), Root: root, Intermediates: list[1:], csr: csr,
	}, nil
}

// clockSlack is how far ahead the clock of the machine with the root's key may be.
const clockSlack = time.Hour

// Sign answers a request. It uses the clock, randomness and intermediate lifetime of c.
func (a Asked) Sign(root *cert.Authority, c Config) ([]byte, error) {
	if cert.Fingerprint(root.Certificate()) != cert.Fingerprint(a.Root) {
		return nil, fmt.Errorf("the request is for root %x, and this is the key of root %x", cert.Fingerprint(a.Root), cert.Fingerprint(root.Certificate()))
	}
	signed, err := a.sign(root, c)
	if err != nil {
		return nil, err
	}
	return certificatesPEM([]*x509.Certificate{signed}), nil
}

func (a Asked) sign(root *cert.Authority, c Config) (*x509.Certificate, error) {
	if c.IntermediateLifetime < MinIntermediateLifetime || c.IntermediateLifetime > MaxIntermediateLifetime {
		return nil, fmt.Errorf("intermediate certificates of %v: want %v to %v", c.IntermediateLifetime, MinIntermediateLifetime, MaxIntermediateLifetime)
	}
	from := c.Clock().Add(-clockSlack)
	return root.SignIntermediate(c.Rand, a.csr.PublicKey, from, min(c.IntermediateLifetime+clockSlack, root.Certificate().NotAfter.Sub(from)))
}

// Succeed answers a request with a new root, which replaces the requested one.
func (a Asked) Succeed(root *cert.Authority, c Config) (Succession, []byte, error) {
	if cert.Fingerprint(root.Certificate()) != cert.Fingerprint(a.Root) {
		return Succession{}, nil, fmt.Errorf("the request is for root %x, and this is the key of root %x", cert.Fingerprint(a.Root), cert.Fingerprint(root.Certificate()))
	}
	s, err := Succeed(root, a.Intermediates, c)
	if err != nil {
		return Succession{}, nil, err
	}
	signed, err := a.sign(s.Root, c)
	if err != nil {
		return Succession{}, nil, err
	}
	list := append([]*x509.Certificate{signed, s.Root.Certificate(), s.Cross}, s.Intermediates...)
	return s, certificatesPEM(list), nil
}

// Install installs the answer to the request: the next intermediate and, if the answer comes from a new root, that root. It may
// be repeated after a crash. It reports whether the root changed.
func (i *Issuer) Install(answer []byte) (rotated bool, err error) {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	signer, err := i.files.readRequested()
	if errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("%w: there is no request that waits for an answer", ErrAnswer)
	}
	if err != nil {
		return false, err
	}
	next, err := i.parseAnswer(answer, signer)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	if next.root != nil {
		t := trust{newest: next.root, before: i.trusted().newest, cross: next.cross}
		if err := i.succeed(t, next.crossed); err != nil {
			return false, err
		}
	}
	if err := i.install(next.intermediate); err != nil {
		return false, err
	}
	return next.root != nil, i.files.remove(requestedFile)
}

// answered is a validated answer.
type answered struct {
	intermediate *cert.Authority
	root, cross  *x509.Certificate // nil if the root stays
	crossed      []*x509.Certificate
}

// parseAnswer parses an answer, and checks that all of it chains to a trusted root.
func (i *Issuer) parseAnswer(answer []byte, signer key.DevicePrivate) (answered, error) {
	if len(answer) > maxFile {
		return answered{}, fmt.Errorf("%d bytes, at most %d", len(answer), maxFile)
	}
	list, err := parseCertificates(answer)
	if err != nil {
		return answered{}, err
	}
	if len(list) == 0 || len(list) > proto.MaxAuthorities {
		return answered{}, fmt.Errorf("%d certificates, want 1 to %d", len(list), proto.MaxAuthorities)
	}
	var next answered
	if next.intermediate, err = cert.NewAuthority(signer, list[0].Raw); err != nil {
		return answered{}, fmt.Errorf("it is for another key than this coordinator asked for: %w", err)
	}
	if now := i.config.Clock(); !young(list[0], now) {
		return answered{}, fmt.Errorf("the intermediate is good from %s to %s, it is %s: check the clocks, and sign it again",
			list[0].NotBefore.Format(time.RFC3339), list[0].NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	t := i.trusted()
	if len(list) > 1 && !list[1].Equal(t.newest) { // equal if installing it had already begun
		if t.before != nil {
			return answered{}, ErrTwoRoots
		}
		if len(list) < 3 {
			return answered{}, errors.New("a new root that is not cross-signed")
		}
		next.root, next.cross, next.crossed = list[1], list[2], list[3:]
	}
	return next, i.checkAnswer(t, next)
}

func (i *Issuer) checkAnswer(t trust, next answered) error {
	trusted := []*x509.Certificate{t.newest}
	v, err := cert.NewVerifier(i.config.Mesh, trusted)
	if err != nil {
		return err
	}
	ders := [][]byte{next.intermediate.Certificate().Raw}
	if next.root != nil {
		ders = append(ders, next.cross.Raw)
	}
	if err := v.AddIntermediates(ders); err != nil {
		return err
	}
	if next.root == nil {
		return nil
	}
	if _, _, err := cert.ParseRoot(next.root.Raw); err != nil || !v.Trusts(next.root) {
		return errors.New("a new root that this mesh's root has not signed")
	}
	under, err := cert.NewVerifier(i.config.Mesh, []*x509.Certificate{next.root})
	if err != nil {
		return err
	}
	for _, c := range append([]*x509.Certificate{next.intermediate.Certificate()}, next.crossed...) {
		if err := under.AddIntermediates([][]byte{c.Raw}); err != nil {
			return fmt.Errorf("not signed by the new root: %w", err)
		}
	}
	// Certificates issued so far must remain valid for nodes that will know only the new root.
	for _, c := range i.intermediates() {
		if !under.Knows(c.PublicKey.(*ecdsa.PublicKey)) {
			return errors.New("it is for an older request: an intermediate that is in use is not in it; make a new request")
		}
	}
	return nil
}

func parseCertificates(b []byte) (list []*x509.Certificate, err error) {
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != certificateBlock {
			return nil, errors.New("holds something that is not a certificate in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list, b = append(list, c), rest
	}
	return list, nil
}

func certificatesPEM(list []*x509.Certificate) []byte {
	var b []byte
	for _, c := range list {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: c.Raw})...)
	}
	return b
}
