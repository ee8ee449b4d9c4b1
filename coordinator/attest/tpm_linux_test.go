package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/eventlog"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// tpmLab is a maker and the TPMs that it made.
type tpmLab struct {
	testing.TB
	dir   string
	maker *swtpm.Maker
}

func newTPMLab(t testing.TB) *tpmLab {
	t.Helper()
	labtest.Installed(t, swtpm.Missing())
	dir, err := os.MkdirTemp("", "attest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := swtpm.NewMaker(filepath.Join(dir, "maker"))
	if err != nil {
		t.Fatal(err)
	}
	return &tpmLab{t, dir, m}
}

// authorities returns authorities that trust the maker.
func (l *tpmLab) authorities() *Authorities {
	l.Helper()
	roots := filepath.Join(l.dir, "roots")
	if err := l.maker.Roots(roots); err != nil {
		l.Fatal(err)
	}
	a := NewAuthorities()
	files, err := filepath.Glob(filepath.Join(roots, "*"))
	if err != nil {
		l.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err == nil {
			err = a.Add(b)
		}
		if err != nil {
			l.Fatal(err)
		}
	}
	return a
}

// chip is a TPM with access to everything that a lying machine could use.
type chip struct {
	testing.TB
	transport.TPMCloser
	ek          *loaded
	certificate []byte
}

// loaded is a key loaded in a TPM.
type loaded struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	area   []byte // TPMT_PUBLIC
	public *tpm2.TPMTPublic
}

func (k *loaded) named() tpm2.NamedHandle { return tpm2.NamedHandle{Handle: k.handle, Name: k.name} }

func (l *tpmLab) chip(name string) *chip {
	l.Helper()
	t, err := swtpm.New(l.Context(), filepath.Join(l.dir, name), l.maker)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = t.Close() })
	tr, err := linuxudstpm.Open(t.Socket)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = tr.Close() })
	out := &chip{TB: l.TB, TPMCloser: tr}
	out.ek = out.resident(0x81010001)
	out.certificate = out.stored(0x01c00002)
	return out
}

func (c *chip) key(handle tpm2.TPMHandle, name tpm2.TPM2BName, public tpm2.TPM2BPublic) *loaded {
	c.Helper()
	p, err := public.Contents()
	if err != nil {
		c.Fatal(err)
	}
	return &loaded{handle, name, tpm2.Marshal(*p), p}
}

func (c *chip) resident(h tpm2.TPMHandle) *loaded {
	c.Helper()
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	return c.key(h, r.Name, r.OutPublic)
}

func (c *chip) stored(index tpm2.TPMHandle) (out []byte) {
	c.Helper()
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		c.Fatal(err)
	}
	for len(out) < int(public.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: p.NVName},
			Size: min(512, public.DataSize-uint16(len(out))), Offset: uint16(len(out)),
		}.Execute(c)
		if err != nil {
			c.Fatal(err)
		}
		out = append(out, r.Data.Buffer...)
	}
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(out, &raw); err != nil {
		c.Fatal(err)
	}
	return raw.FullBytes
}

// primary creates a key in a hierarchy. It is flushed when the test ends, or by flush.
func (c *chip) primary(h tpm2.TPMHandle, template tpm2.TPMTPublic) *loaded {
	c.Helper()
	r, err := tpm2.CreatePrimary{PrimaryHandle: h, InPublic: tpm2.New2B(template)}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	return c.key(r.ObjectHandle, r.Name, r.OutPublic)
}

func (c *chip) flush(k *loaded) {
	if _, err := (tpm2.FlushContext{FlushHandle: k.handle}).Execute(c); err != nil {
		c.Error(err)
	}
}

// template returns the template of a restricted P-256 signing key, modified by change.
func template(change func(*tpm2.TPMTPublic)) tpm2.TPMTPublic {
	t := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
	}
	if change != nil {
		change(&t)
	}
	return t
}

func unrestricted(t *tpm2.TPMTPublic) { t.ObjectAttributes.Restricted = false }

func (c *chip) signature(s tpm2.TPMTSignature) []byte {
	c.Helper()
	e, err := s.Signature.ECDSA()
	if err != nil {
		c.Fatal(err)
	}
	out, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(e.SignatureR.Buffer), new(big.Int).SetBytes(e.SignatureS.Buffer)})
	if err != nil {
		c.Fatal(err)
	}
	return out
}

var quotedPCRs = []uint{0, 2, 4, 7}

func (c *chip) quote(ak *loaded, data []byte, selection ...tpm2.TPMSPCRSelection) (statement, signature []byte) {
	c.Helper()
	r, err := tpm2.Quote{
		SignHandle: ak.named(), QualifyingData: tpm2.TPM2BData{Buffer: data}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: selection},
	}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	return r.Quoted.Bytes(), c.signature(r.Signature)
}

func bank(pcrs ...uint) tpm2.TPMSPCRSelection {
	return tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}
}

func (c *chip) pcrs() (out [][]byte) {
	c.Helper()
	r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{bank(quotedPCRs...)}}}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	for _, d := range r.PCRValues.Digests {
		out = append(out, d.Buffer)
	}
	return out
}

func (c *chip) certify(ak, k *loaded, data []byte) (statement, signature []byte) {
	c.Helper()
	r, err := tpm2.Certify{
		ObjectHandle: k.named(), SignHandle: ak.named(), QualifyingData: tpm2.TPM2BData{Buffer: data},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	return r.CertifyInfo.Bytes(), c.signature(r.Signature)
}

// activate tries to open a credential with this TPM's EK.
func (c *chip) activate(ak *loaded, challenge []byte) ([]byte, error) {
	var m redoubtv1.TPMChallenge
	if err := pb.Unmarshal(challenge, &m); err != nil {
		return nil, err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: ak.named(),
		KeyHandle: tpm2.AuthHandle{Handle: c.ek.handle, Name: c.ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16,
			func(t transport.TPM, h tpm2.TPMISHPolicy, n tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: h, NonceTPM: n}.Execute(t)
				return err
			})},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: m.GetCredential()}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: m.GetSecret()},
	}.Execute(c)
	if err != nil {
		return nil, err
	}
	return r.CertInfo.Buffer, nil
}

func (c *chip) device(k *loaded) key.DevicePublic {
	c.Helper()
	p, err := tpm2.Pub(*k.public)
	if err != nil {
		c.Fatal(err)
	}
	d, err := key.DeviceFromPublic(p)
	if err != nil {
		c.Fatal(err)
	}
	return d
}

// exchange is an honest enrolment whose parts can be changed.
type exchange struct {
	opening  *redoubtv1.TPMOpening
	claim    Claim
	state    State
	evidence *redoubtv1.TPMEvidence
	binding  [32]byte
	secret   []byte
}

// honest performs the enrolment of an honest machine up to the last step.
func (c *chip) honest(a TPM, ak, device *loaded) *exchange {
	c.Helper()
	x := &exchange{
		opening: &redoubtv1.TPMOpening{EkCertificate: c.certificate, EkPublic: c.ek.area, AkPublic: ak.area},
		claim:   claim(c), binding: thisExchange,
	}
	x.claim.Device = c.device(device)
	challenge, state, err := a.Begin(time.Now(), rand.Reader, x.claim, encoded(c, x.opening))
	if err != nil {
		c.Fatal(err)
	}
	x.state = state
	if x.secret, err = c.activate(ak, challenge); err != nil {
		c.Fatal(err)
	}
	x.evidence = &redoubtv1.TPMEvidence{Activation: answer(x.secret, x.binding), Pcrs: c.pcrs(), DevicePublic: device.area}
	x.evidence.Quote, x.evidence.QuoteSignature = c.quote(ak, x.binding[:], bank(quotedPCRs...))
	x.evidence.Certification, x.evidence.CertificationSignature = c.certify(ak, device, x.binding[:])
	return x
}

func (x *exchange) finish(t testing.TB, a TPM) (Attributes, error) {
	t.Helper()
	return a.Finish(time.Now(), x.state, encoded(t, x.evidence), x.binding)
}

// record stores what a TPM said, for the tests that run without one.
func (x *exchange) record(l *tpmLab) {
	l.Helper()
	var roots []byte
	for _, name := range []string{"swtpm-localca-rootca-cert.pem", "issuercert.pem"} {
		b, err := os.ReadFile(filepath.Join(l.dir, "roots", name))
		if err != nil {
			l.Fatal(err)
		}
		roots = append(roots, b...)
	}
	for name, b := range map[string][]byte{
		"roots.pem": roots, "opening": encoded(l, x.opening), "evidence": encoded(l, x.evidence), "device": x.claim.Device.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join("testdata", "tpm", name), b, 0o644); err != nil {
			l.Fatal(err)
		}
	}
}

func (x *exchange) clone() *exchange {
	y := *x
	y.opening, y.evidence = pb.Clone(x.opening).(*redoubtv1.TPMOpening), pb.Clone(x.evidence).(*redoubtv1.TPMEvidence)
	return &y
}

func refusedFor(t *testing.T, err error, why string) {
	t.Helper()
	var unable *UnableError
	if err == nil || errors.As(err, &unable) || !strings.Contains(err.Error(), why) {
		t.Errorf("%v, want a refusal for %q", err, why)
	}
}

// TestLyingMachines checks that the evidence of a real TPM is refused once a machine has altered it.
func TestLyingMachines(t *testing.T) {
	l := newTPMLab(t)
	c := l.chip("a")
	a := NewTPM(l.authorities())
	ak := c.primary(tpm2.TPMRHEndorsement, template(nil))
	device := c.primary(tpm2.TPMRHOwner, template(unrestricted))
	good := c.honest(a, ak, device)
	got, err := good.finish(t, a)
	if *record {
		good.record(l)
	}
	if err != nil || got.Level != cert.LevelTPM || !got.CanReattest || !strings.HasPrefix(got.DeviceID, "tpm:") || len(got.Selectors) < 8 {
		t.Fatalf("%+v, %v", got, err)
	}
	later := sha256.Sum256([]byte("a later exchange"))
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, lie := range map[string]struct {
		change func(*exchange)
		why    string
	}{
		"replayed": {func(x *exchange) { x.binding = later }, "was not opened"},
		"quote replayed": {func(x *exchange) {
			x.binding = later
			x.evidence.Activation = answer(x.secret, later)
			x.recertify(c, ak, device)
		}, "replayed, or relayed"},
		"certification replayed":   {func(x *exchange) { x.binding = later; x.evidence.Activation = answer(x.secret, later) }, "device key: the TPM's statement is for another exchange"},
		"another secret":           {func(x *exchange) { x.evidence.Activation = answer([]byte("guess"), x.binding) }, "was not opened"},
		"nothing activated":        {func(x *exchange) { x.evidence.Activation = nil }, "was not opened"},
		"edited PCRs":              {func(x *exchange) { flip(x.evidence.Pcrs[3]) }, "not those that the TPM signed"},
		"a PCR left out":           {func(x *exchange) { x.evidence.Pcrs = x.evidence.Pcrs[:3] }, "3 values"},
		"long value of a PCR":      {func(x *exchange) { x.evidence.Pcrs[0] = make([]byte, 64) }, "64 bytes"},
		"flipped quote":            {func(x *exchange) { flip(x.evidence.Quote) }, "did not sign"},
		"flipped signature":        {func(x *exchange) { flip(x.evidence.QuoteSignature) }, "did not sign"},
		"flipped certification":    {func(x *exchange) { flip(x.evidence.Certification) }, "did not sign"},
		"flipped device key":       {func(x *exchange) { flip(x.evidence.DevicePublic) }, "device key"},
		"device key not certified": {func(x *exchange) { x.evidence.Certification, x.evidence.CertificationSignature = nil, nil }, "did not sign"},
		"statements exchanged":     {func(x *exchange) { x.exchangeStatements() }, "of another kind"},
		"another device key":       {func(x *exchange) { x.enrolWith(claim(t).Device) }, "another one than the machine enrols with"},
		"software as device key":   {func(x *exchange) { x.softwareKey(t, device) }, "another key was certified"},
		"restricted device key":    {func(x *exchange) { x.evidence.DevicePublic = ak.area }, "it is restricted"},
		"says that it cannot":      {func(x *exchange) { x.evidence.Pcrs = nil; x.evidence.Quote = nil }, "did not sign"},
		"empty selection":          {func(x *exchange) { x.requote(c, ak) }, "0 banks"},
		"selection of none":        {func(x *exchange) { x.requote(c, ak, bank()) }, "other PCRs were quoted"},
		"fewer PCRs":               {func(x *exchange) { x.requote(c, ak, bank(0, 2, 4)) }, "other PCRs were quoted"},
		"more PCRs":                {func(x *exchange) { x.requote(c, ak, bank(0, 2, 4, 7, 23)) }, "other PCRs were quoted"},
		"another bank": {func(x *exchange) {
			x.requote(c, ak, tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA384, PCRSelect: tpm2.PCClientCompatible.PCRs(quotedPCRs...)})
		}, "another one"},
		"signed by another key": {func(x *exchange) { x.forge(c, device) }, "did not sign"},
	} {
		t.Run(name, func(t *testing.T) {
			x := good.clone()
			lie.change(x)
			_, err := x.finish(t, a)
			refusedFor(t, err, lie.why)
		})
	}
	if _, err := good.finish(t, a); err != nil {
		t.Errorf("the honest one after all that: %v", err)
	}
}

func (x *exchange) recertify(c *chip, ak, device *loaded) {
	x.evidence.Certification, x.evidence.CertificationSignature = c.certify(ak, device, x.binding[:])
}

func (x *exchange) exchangeStatements() {
	e := x.evidence
	e.Quote, e.Certification = e.Certification, e.Quote
	e.QuoteSignature, e.CertificationSignature = e.CertificationSignature, e.QuoteSignature
}

// requote replaces the quote with one of another selection of PCRs.
func (x *exchange) requote(c *chip, ak *loaded, selection ...tpm2.TPMSPCRSelection) {
	x.evidence.Quote, x.evidence.QuoteSignature = c.quote(ak, x.binding[:], selection...)
}

// softwareKey claims that the certified key is one in software.
func (x *exchange) softwareKey(t *testing.T, like *loaded) {
	t.Helper()
	k, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := k.Device().Bytes()[1:]
	p := *like.public
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[:32]}, Y: tpm2.TPM2BECCParameter{Buffer: point[32:]},
	})
	x.evidence.DevicePublic = tpm2.Marshal(p)
	x.enrolWith(k.Device())
}

// enrolWith makes the machine enrol with another device key.
func (x *exchange) enrolWith(k key.DevicePublic) {
	s := *x.state.(*tpmState)
	s.claim.Device = k
	x.state = &s
}

// forge signs the quote with an unrestricted key.
func (x *exchange) forge(c *chip, k *loaded) {
	c.Helper()
	digest := sha256.Sum256(x.evidence.Quote)
	r, err := tpm2.Sign{
		KeyHandle: k.named(), Digest: tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(c)
	if err != nil {
		c.Fatal(err)
	}
	x.evidence.QuoteSignature = c.signature(r.Signature)
}

// TestKeysThatAreNone checks that openings with keys that prove nothing are refused.
func TestKeysThatAreNone(t *testing.T) {
	l := newTPMLab(t)
	c, victim := l.chip("a"), l.chip("b")
	a := NewTPM(l.authorities())
	foreign := newTPMLab(t)
	stranger := foreign.chip("c")
	ak := c.primary(tpm2.TPMRHEndorsement, template(nil))
	free := c.primary(tpm2.TPMRHEndorsement, template(unrestricted))
	opening := func(change func(*redoubtv1.TPMOpening)) []byte {
		m := &redoubtv1.TPMOpening{EkCertificate: c.certificate, EkPublic: c.ek.area, AkPublic: ak.area}
		change(m)
		return encoded(t, m)
	}
	root, _ := pem.Decode(func() []byte { b, _ := os.ReadFile(filepath.Join(l.dir, "roots", "issuercert.pem")); return b }())
	for name, lie := range map[string]struct {
		opening []byte
		why     string
	}{
		"unrestricted AK":      {opening(func(m *redoubtv1.TPMOpening) { m.AkPublic = free.area }), "not restricted"},
		"EK as AK":             {opening(func(m *redoubtv1.TPMOpening) { m.AkPublic = c.ek.area }), "attestation key"},
		"AK as EK":             {opening(func(m *redoubtv1.TPMOpening) { m.EkPublic = ak.area; m.EkCertificate = nil }), "not those of an endorsement key"},
		"another TPM's":        {opening(func(m *redoubtv1.TPMOpening) { m.EkCertificate = victim.certificate }), "of another TPM's"},
		"another maker's":      {opening(func(m *redoubtv1.TPMOpening) { m.EkCertificate, m.EkPublic = stranger.certificate, stranger.ek.area }), "not trusted here"},
		"an authority's":       {opening(func(m *redoubtv1.TPMOpening) { m.EkCertificate = root.Bytes }), "an authority's"},
		"damaged certificate":  {opening(func(m *redoubtv1.TPMOpening) { m.EkCertificate = m.EkCertificate[:99] }), "cannot be read"},
		"cut":                  {opening(func(m *redoubtv1.TPMOpening) { m.AkPublic = m.AkPublic[:20] }), "attestation key"},
		"something behind":     {opening(func(m *redoubtv1.TPMOpening) { m.AkPublic = append(m.AkPublic[:len(m.AkPublic):len(m.AkPublic)], 0) }), "only form"},
		"nothing":              {nil, "missing"},
		"nothing but the kind": {opening(func(m *redoubtv1.TPMOpening) { m.Reset() }), "missing"},
		"no message":           {[]byte("what?"), "not a message"},
		"a key made outside": {opening(func(m *redoubtv1.TPMOpening) {
			m.AkPublic = imported(ak, func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })
		}), "sensitiveDataOrigin"},
		"a key that may leave": {opening(func(m *redoubtv1.TPMOpening) {
			m.AkPublic = imported(ak, func(a *tpm2.TPMAObject) { a.FixedTPM = false })
		}), "fixedTPM"},
		"a key of other parents": {opening(func(m *redoubtv1.TPMOpening) {
			m.AkPublic = imported(ak, func(a *tpm2.TPMAObject) { a.FixedParent = false })
		}), "fixedParent"},
	} {
		t.Run(name, func(t *testing.T) {
			_, state, err := a.Begin(time.Now(), rand.Reader, claim(t), lie.opening)
			if state != nil {
				t.Error("begun")
			}
			refusedFor(t, err, lie.why)
		})
	}

	// An AK outside the EK's TPM: whoever has only one of the two cannot open the credential.
	victims := victim.primary(tpm2.TPMRHEndorsement, template(nil))
	challenge, _, err := a.Begin(time.Now(), rand.Reader, claim(t), encoded(t, &redoubtv1.TPMOpening{
		EkCertificate: victim.certificate, EkPublic: victim.ek.area, AkPublic: ak.area,
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.activate(ak, challenge); err == nil {
		t.Error("opened by a TPM with another EK")
	}
	if _, err := victim.activate(victims, challenge); err == nil {
		t.Error("opened for another AK")
	}
}

// imported returns a key's public area with other attributes, like that of a key created elsewhere.
func imported(k *loaded, change func(*tpm2.TPMAObject)) []byte {
	p := *k.public
	change(&p.ObjectAttributes)
	return tpm2.Marshal(p)
}

// TestLevels checks the level of the same TPM with different authorities, at renewals, and with event logs of measured boot.
func TestLevels(t *testing.T) {
	l := newTPMLab(t)
	c := l.chip("a")
	trusted, nobody := NewTPM(l.authorities()), NewTPM(nil)
	ak := c.primary(tpm2.TPMRHEndorsement, template(nil))
	device := c.primary(tpm2.TPMRHOwner, template(unrestricted))
	level := func(a TPM, x *exchange, want cert.Level, words string) Attributes {
		t.Helper()
		got, err := x.finish(t, a)
		if err != nil || got.Level != want || !strings.Contains(strings.Join(got.Checks, "\n"), words) {
			t.Errorf("%+v, %v; want %v with %q", got, err, want, words)
		}
		return got
	}
	level(nobody, c.honest(nobody, ak, device), cert.LevelTPMUnverified, "no maker of TPMs is trusted")
	first := level(trusted, c.honest(trusted, ak, device), cert.LevelTPM, "no event log")
	bare := *c
	bare.certificate = nil
	level(trusted, bare.honest(trusted, ak, device), cert.LevelTPMUnverified, "no certificate of its maker")

	// The machine boots with secure boot on, and has a log of it.
	events := eventlogOf(1)
	for _, e := range events {
		if _, err := (tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digest[:]}}},
		}).Execute(c); err != nil {
			t.Fatal(err)
		}
	}
	x := c.honest(trusted, ak, device)
	x.evidence.EventLog = eventlog.Append(nil, events)
	if got := level(trusted, x, cert.LevelMeasured, "secure boot on"); !strings.Contains(strings.Join(got.Selectors, "\n"), "secureboot=on") {
		t.Errorf("%+v", got.Selectors)
	}
	unverified := c.honest(nobody, ak, device)
	unverified.evidence.EventLog = x.evidence.EventLog
	level(nobody, unverified, cert.LevelTPMUnverified, "secure boot on")
	for why, log := range map[string][]byte{
		"does not lead to":        eventlog.Append(nil, eventlogOf(0)),
		"not a log":               []byte("a log"),
		"no SHA-256 digests":      append(make([]byte, 28), 4, 0, 0, 0, 1, 2, 3, 4),
		"the machine has no":      {},
		"PCR 7: the log does not": eventlog.Append(nil, events[:len(events)-1]),
	} {
		x.evidence.EventLog = log
		level(trusted, x, cert.LevelTPM, why)
	}

	// At a renewal the TPM only quotes; what was recorded about it suffices to check the quote.
	again := func(a TPM, change func(*redoubtv1.TPMEvidence)) (Attributes, error) {
		t.Helper()
		parameters, state, err := a.Again(time.Now(), Claim{Device: c.device(device)}, first.Known)
		if err != nil || len(parameters) != 0 {
			t.Fatalf("%x, %v", parameters, err)
		}
		binding := sha256.Sum256([]byte("a renewal"))
		e := &redoubtv1.TPMEvidence{Pcrs: c.pcrs()}
		e.Quote, e.QuoteSignature = c.quote(ak, binding[:], bank(quotedPCRs...))
		change(e)
		return a.Finish(time.Now(), state, encoded(t, e), binding)
	}
	got, err := again(trusted, func(*redoubtv1.TPMEvidence) {})
	if err != nil || got.Level != cert.LevelTPM || got.DeviceID != first.DeviceID || string(got.Known) != string(first.Known) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = again(nobody, func(*redoubtv1.TPMEvidence) {}); err != nil || got.Level != cert.LevelTPMUnverified {
		t.Errorf("once no maker is trusted any more: %+v, %v", got, err)
	}
	var unable *UnableError
	if _, err = again(trusted, func(e *redoubtv1.TPMEvidence) { e.Unable = "lockout" }); !errors.As(err, &unable) || unable.Reason != "lockout" {
		t.Errorf("a TPM that cannot: %v", err)
	}
	_, err = again(trusted, func(e *redoubtv1.TPMEvidence) { e.Pcrs[0][0] ^= 1 })
	refusedFor(t, err, "not those that the TPM signed")
	c.flush(device)
	another := c.primary(tpm2.TPMRHEndorsement, template(func(t *tpm2.TPMTPublic) { t.ObjectAttributes.NoDA = false }))
	_, err = again(trusted, func(e *redoubtv1.TPMEvidence) {
		b := sha256.Sum256([]byte("a renewal"))
		e.Quote, e.QuoteSignature = c.quote(another, b[:], bank(quotedPCRs...))
	})
	refusedFor(t, err, "did not sign")

	// A key of the owner hierarchy would hide the TPM's clock, and is refused.
	c.flush(ak)
	c.flush(another)
	owners := c.primary(tpm2.TPMRHOwner, template(nil))
	_, err = c.honest(trusted, owners, c.primary(tpm2.TPMRHOwner, template(unrestricted))).finish(t, trusted)
	refusedFor(t, err, "endorsement hierarchy")
}

// eventlogOf returns the log of a machine that boots with secure boot on or off, with events for the quoted PCRs.
func eventlogOf(secure byte) []eventlog.Event {
	event := func(pcr uint32, data []byte) eventlog.Event {
		return eventlog.Event{PCR: pcr, Type: 1, Digest: sha256.Sum256(data), Data: data}
	}
	list := []eventlog.Event{event(0, []byte("firmware")), event(7, secureBoot(secure))}
	for _, n := range wire.QuotedPCRs() {
		list = append(list, event(n, make([]byte, 4)))
	}
	return append(list, event(4, []byte("boot loader")), event(7, []byte("its signer")))
}

// secureBoot returns the variable SecureBoot as firmware measures it.
func secureBoot(value byte) []byte {
	b := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	b = append(b, 10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
	for _, r := range "SecureBoot" {
		b = append(b, byte(r), 0)
	}
	return append(b, value)
}
