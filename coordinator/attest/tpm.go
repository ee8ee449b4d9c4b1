package attest

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"
	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/eventlog"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// TPM is the attestor for machines with a TPM 2.0. What must be shown, and how it is linked:
//
//	maker's CA ──► EK certificate ──► EK ──► credential, which opens only in the TPM that holds EK and AK
//	                                                     │
//	AK: restricted, signs only the TPM's own statements ◄┘
//	 ├──► quote: the PCRs, with the Binding ──► event log: what was booted, secure boot
//	 └──► certification: the device key was created in this TPM and never leaves it, with the Binding
//
// Without authorities, or without an EK certificate, nothing shows that it is a TPM rather than a program that emulates one:
// the level is tpm-unverified. If there are authorities, a certificate that none of them signed is refused.
type TPM struct{ makers *Authorities }

// NewTPM returns an attestor that trusts makers of TPMs; nil means none.
func NewTPM(makers *Authorities) TPM { return TPM{makers} }

// Kind implements Attestor.
func (TPM) Kind() string { return wire.EvidenceTPM }

// secretSize is the size of the secret in a credential.
const secretSize = 32

// tpmState is what Finish needs from Begin or Again.
type tpmState struct {
	claim  Claim
	secret []byte // nil if the AK was shown to be in the TPM earlier
	ek     *endorsement
	ak     *ecdsa.PublicKey
	akName []byte
	known  []byte
}

// Begin implements Attestor.
func (t TPM) Begin(now time.Time, random io.Reader, c Claim, opening []byte) ([]byte, State, error) {
	if len(opening) == 0 {
		return nil, nil, errors.New("the keys of the TPM are missing")
	}
	s, err := t.open(now, c, opening)
	if err != nil {
		return nil, nil, err
	}
	s.secret = make([]byte, secretSize)
	if _, err := io.ReadFull(random, s.secret); err != nil {
		return nil, nil, fmt.Errorf("draw a secret: %w", err)
	}
	credential, encrypted, err := tpm2.CreateCredential(random, s.ek.key, s.akName, s.secret)
	if err != nil {
		return nil, nil, fmt.Errorf("the endorsement key cannot be encrypted to: %w", err)
	}
	parameters, err := pb.Marshal(&redoubtv1.TPMChallenge{Credential: credential, Secret: encrypted})
	return parameters, s, err
}

// Again implements Attestor. That the AK is in the TPM of the EK was shown before and stays true; whether the maker is
// trusted is checked again.
func (t TPM) Again(now time.Time, c Claim, known []byte) ([]byte, State, error) {
	s, err := t.open(now, c, known)
	return nil, s, err
}

// open checks the keys of a TPM before anything is proved.
func (t TPM) open(now time.Time, c Claim, opening []byte) (*tpmState, error) {
	var m redoubtv1.TPMOpening
	if err := pb.Unmarshal(opening, &m); err != nil {
		return nil, errors.New("not a message of this kind")
	}
	ek, err := judgeEK(&m, t.makers, now)
	if err != nil {
		return nil, err
	}
	s := &tpmState{claim: c, ek: ek}
	if s.ak, s.akName, err = signer(m.GetAkPublic(), true); err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	s.known, err = pb.MarshalOptions{Deterministic: true}.Marshal(&redoubtv1.TPMOpening{
		EkCertificate: m.GetEkCertificate(), EkPublic: m.GetEkPublic(), AkPublic: m.GetAkPublic(),
	})
	return s, err
}

// Finish implements Attestor.
func (TPM) Finish(_ time.Time, state State, evidence []byte, binding [32]byte) (Attributes, error) {
	s, ok := state.(*tpmState)
	if !ok {
		return Attributes{}, errState
	}
	var m redoubtv1.TPMEvidence
	if err := pb.Unmarshal(evidence, &m); err != nil {
		return Attributes{}, errors.New("not a message of this kind")
	}
	if m.GetUnable() != "" {
		return Attributes{}, &UnableError{printable(m.GetUnable())}
	}
	a := Attributes{DeviceID: s.ek.id, Level: s.ek.level, CanReattest: true, Known: s.known}
	a.Selectors = append(a.Selectors, s.ek.selectors...)
	a.Checks = append(a.Checks, s.ek.check)
	if s.secret != nil {
		if err := s.admit(&m, binding); err != nil {
			return Attributes{}, err
		}
	}
	a.Checks = append(a.Checks, "at enrolment: attestation key is in that TPM", "at enrolment: device key was made in that TPM and cannot leave it")
	pcrs, firmware, err := s.quoted(&m, binding)
	if err != nil {
		return Attributes{}, fmt.Errorf("quote: %w", err)
	}
	a.Checks = append(a.Checks, "fresh quote of PCR 0, 2, 4, 7")
	a.Selectors = selectors(a.Selectors, "tpm:firmware", fmt.Sprintf("%x.%x", firmware>>32, firmware&0xffffffff))
	for i, n := range wire.QuotedPCRs() {
		a.Selectors = selectors(a.Selectors, fmt.Sprintf("pcr:%d", n), hex.EncodeToString(pcrs[i][:]))
	}
	a.measure(m.GetEventLog(), pcrs)
	return a, nil
}

// measure adds what an event log of measured boot shows. A log that shows nothing takes nothing away.
func (a *Attributes) measure(raw []byte, pcrs [][32]byte) {
	if err := measured(raw, pcrs); err != nil {
		a.Checks = append(a.Checks, "not measured: "+err.Error())
		return
	}
	a.Checks = append(a.Checks, "event log leads to the quoted PCRs, and shows secure boot on")
	a.Selectors = selectors(a.Selectors, "secureboot", "on")
	if a.Level == cert.LevelTPM {
		a.Level = cert.LevelMeasured
	}
}

// admit checks what needs to be shown only once: that AK and EK are in the same TPM, and the device key too.
func (s *tpmState) admit(m *redoubtv1.TPMEvidence, binding [32]byte) error {
	h := hmac.New(sha256.New, s.secret)
	h.Write(binding[:])
	if !hmac.Equal(h.Sum(nil), m.GetActivation()) {
		return errors.New("the credential was not opened: the attestation key is not in the TPM of this endorsement key, or the answer is for another exchange")
	}
	device, name, err := signer(m.GetDevicePublic(), false)
	if err != nil {
		return fmt.Errorf("device key: %w", err)
	}
	if k, err := key.DeviceFromPublic(device); err != nil || k != s.claim.Device {
		return errors.New("device key: the TPM's is another one than the machine enrols with")
	}
	a, err := s.said(m.GetCertification(), m.GetCertificationSignature(), tpm2.TPMSTAttestCertify, binding)
	if err != nil {
		return fmt.Errorf("device key: %w", err)
	}
	certified, err := a.Attested.Certify()
	if err != nil {
		return fmt.Errorf("device key: %w", err)
	}
	if !hmac.Equal(certified.Name.Buffer, name) {
		return errors.New("device key: another key was certified")
	}
	return nil
}

// quoted returns the PCRs that the TPM vouches for and the version of its firmware.
func (s *tpmState) quoted(m *redoubtv1.TPMEvidence, binding [32]byte) (pcrs [][32]byte, firmware uint64, err error) {
	a, err := s.said(m.GetQuote(), m.GetQuoteSignature(), tpm2.TPMSTAttestQuote, binding)
	if err != nil {
		return nil, 0, err
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return nil, 0, err
	}
	if err := selected(q.PCRSelect.PCRSelections); err != nil {
		return nil, 0, err
	}
	if len(m.GetPcrs()) != len(wire.QuotedPCRs()) {
		return nil, 0, fmt.Errorf("%d values of PCRs, want %d", len(m.GetPcrs()), len(wire.QuotedPCRs()))
	}
	h := sha256.New()
	for _, v := range m.GetPcrs() {
		if len(v) != sha256.Size {
			return nil, 0, fmt.Errorf("the value of a PCR has %d bytes, want %d", len(v), sha256.Size)
		}
		pcrs = append(pcrs, [32]byte(v))
		h.Write(v)
	}
	if !hmac.Equal(h.Sum(nil), q.PCRDigest.Buffer) {
		return nil, 0, errors.New("the values of the PCRs are not those that the TPM signed")
	}
	return pcrs, a.FirmwareVersion, nil
}

// selected checks that exactly the PCRs that must be quoted were selected.
func selected(list []tpm2.TPMSPCRSelection) error {
	if len(list) != 1 || list[0].Hash != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("%d banks of PCRs were quoted, or another one: want SHA-256", len(list))
	}
	var want, have uint64
	for _, n := range wire.QuotedPCRs() {
		want |= 1 << n
	}
	bits := list[0].PCRSelect
	if len(bits) > 8 {
		return fmt.Errorf("a selection of %d bytes", len(bits))
	}
	for i, b := range bits {
		have |= uint64(b) << (8 * i)
	}
	if have != want {
		return fmt.Errorf("other PCRs were quoted than %v", wire.QuotedPCRs())
	}
	return nil
}

// said parses a statement that the TPM makes about itself, after checking that the AK signed it, its type, and that it is for
// this exchange. The signer must be the AK as a primary key of the endorsement hierarchy, whose statements show the TPM's
// clock and firmware unobfuscated.
func (s *tpmState) said(statement, signature []byte, kind tpm2.TPMST, binding [32]byte) (*tpm2.TPMSAttest, error) {
	digest := sha256.Sum256(statement)
	if !ecdsa.VerifyASN1(s.ak, digest[:], signature) {
		return nil, errors.New("the attestation key did not sign this")
	}
	a, err := parse[tpm2.TPMSAttest](statement)
	if err != nil {
		return nil, err
	}
	if a.Magic != tpm2.TPMGeneratedValue || a.Type != kind {
		return nil, errors.New("the TPM's statement is of another kind")
	}
	if !hmac.Equal(a.ExtraData.Buffer, binding[:]) {
		return nil, errors.New("the TPM's statement is for another exchange: replayed, or relayed from another connection")
	}
	if !hmac.Equal(a.QualifiedSigner.Buffer, qualified(tpm2.TPMRHEndorsement, s.akName)) {
		return nil, errors.New("the attestation key is no primary key of the endorsement hierarchy")
	}
	return a, nil
}

// qualified returns the qualified name of a primary key whose name is a SHA-256 digest.
func qualified(hierarchy tpm2.TPMHandle, name []byte) []byte {
	sum := sha256.Sum256(append(tpm2.HandleName(hierarchy).Buffer, name...))
	return append(append([]byte(nil), name[:2]...), sum[:]...)
}

// measured returns why a log does not show that the machine booted as it should, or nil if it does.
func measured(raw []byte, pcrs [][32]byte) error {
	if len(raw) == 0 {
		return errors.New("the machine has no event log")
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		return err
	}
	for i, n := range wire.QuotedPCRs() {
		if err := log.Replay(n, pcrs[i]); err != nil {
			return err
		}
	}
	return log.SecureBoot()
}
