package device

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto/eventlog"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// endorsements are the endorsement keys that TPMs have, those that are cheaper to create first: the index of the
// manufacturer's certificate, the handle where systems keep the key, and the template that it is created from.
var endorsements = []struct {
	certificate, handle tpm2.TPMHandle
	template            tpm2.TPMTPublic
}{
	{0x01c0000a, 0x81010002, tpm2.ECCEKTemplate},
	{0x01c00002, 0x81010001, tpm2.RSAEKTemplate},
}

// endorsement returns an endorsement key with its certificate, which is nil if the manufacturer provided none.
func (t *TPM) endorsement() (*object, []byte, error) {
	for _, e := range endorsements {
		certificate, err := t.stored(e.certificate)
		if err != nil {
			return nil, nil, fmt.Errorf("read the maker's certificate: %w", err)
		}
		if certificate == nil {
			continue
		}
		k, err := t.resident(e.handle)
		if k == nil && err == nil {
			k, err = t.primary(tpm2.TPMRHEndorsement, e.template)
		}
		return k, certificate, err
	}
	k, err := t.primary(tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate)
	return k, nil, err
}

// nvBlock is how much to read from NV storage at a time; every TPM supports that much.
const nvBlock = 512

// maxCertificate limits what is read from NV storage.
const maxCertificate = 8 << 10

// stored reads a certificate from the TPM's NV storage; nil if there is none.
func (t *TPM) stored(index tpm2.TPMHandle) ([]byte, error) {
	p, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := p.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	size := public.DataSize
	if size > maxCertificate {
		return nil, fmt.Errorf("%d bytes, at most %d", size, maxCertificate)
	}
	named := tpm2.NamedHandle{Handle: index, Name: p.NVName}
	var out []byte
	for off := uint16(0); off < size; {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: p.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    named, Size: min(nvBlock, size-off), Offset: off,
		}.Execute(t.t)
		if err != nil {
			return nil, err
		}
		if len(r.Data.Buffer) == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		out = append(out, r.Data.Buffer...)
		off += uint16(len(r.Data.Buffer))
	}
	// The NV index may be larger than its content.
	var certificate asn1.RawValue
	if _, err := asn1.Unmarshal(out, &certificate); err != nil {
		return nil, fmt.Errorf("not a certificate: %w", err)
	}
	return certificate.FullBytes, nil
}

// attester returns the attestation key.
func (t *TPM) attester() (*object, error) {
	return t.primary(tpm2.TPMRHEndorsement, signing(true))
}

// area returns the wire encoding of a public area.
func area(p tpm2.TPM2BPublic) ([]byte, error) {
	c, err := p.Contents()
	if err != nil {
		return nil, err
	}
	return tpm2.Marshal(*c), nil
}

// Opening returns what a coordinator needs to make its challenge.
func (t *TPM) Opening() (opening []byte, err error) {
	err = t.do(func() error {
		t.unload()
		ek, certificate, err := t.endorsement()
		if err != nil {
			return fmt.Errorf("endorsement key: %w", err)
		}
		t.flush(ek)
		ak, err := t.attester()
		if err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		t.flush(ak)
		m := &redoubtv1.TPMOpening{EkCertificate: certificate}
		if m.EkPublic, err = area(ek.public); err != nil {
			return err
		}
		if m.AkPublic, err = area(ak.public); err != nil {
			return err
		}
		opening, err = pb.Marshal(m)
		return err
	})
	return opening, err
}

// Evidence answers an enrolment's challenge, for which the device key must be in this TPM, or a renewal's, which is empty.
// If the TPM cannot answer for a renewal, the evidence says so: the node keeps its certificate.
func (t *TPM) Evidence(b Blob, challenge []byte, binding [32]byte) ([]byte, error) {
	var c redoubtv1.TPMChallenge
	if err := pb.Unmarshal(challenge, &c); err != nil {
		return nil, fmt.Errorf("the coordinator's challenge for the TPM: %w", err)
	}
	m, err := t.evidence(b, &c, binding)
	if err != nil && len(challenge) == 0 {
		m, err = &redoubtv1.TPMEvidence{Unable: unable(err)}, nil
	}
	if err != nil {
		return nil, err
	}
	return pb.Marshal(m)
}

// maxUnable limits how much of an error the coordinator is told.
const maxUnable = 200

func unable(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\ufffd")
	return strings.ToValidUTF8(s[:min(len(s), maxUnable)], "") // without a character that was cut
}

func (t *TPM) evidence(b Blob, c *redoubtv1.TPMChallenge, binding [32]byte) (*redoubtv1.TPMEvidence, error) {
	m := &redoubtv1.TPMEvidence{}
	err := t.do(func() (err error) {
		enrol := len(c.GetCredential()) > 0
		if enrol {
			if err := t.load(b); err != nil {
				return err
			}
		}
		ak, err := t.attester()
		if err != nil {
			return fmt.Errorf("attestation key: %w", err)
		}
		defer t.flush(ak)
		if err := t.quote(ak, binding, m); err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		if !enrol {
			return nil
		}
		if err := t.certify(ak, binding, m); err != nil {
			return fmt.Errorf("certify the device key: %w", err)
		}
		if err := t.activate(ak, c, binding, m); err != nil {
			return fmt.Errorf("open the credential: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.EventLog = t.log()
	return m, nil
}

// quoted returns the selection of PCRs to quote.
func quoted() tpm2.TPMLPCRSelection {
	var list []uint
	for _, n := range wire.QuotedPCRs() {
		list = append(list, uint(n))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(list...)}}}
}

// quoteTries is how often to read the PCRs that belong to a quote, in case one is extended in between.
const quoteTries = 3

func (t *TPM) quote(ak *object, binding [32]byte, m *redoubtv1.TPMEvidence) error {
	for range quoteTries {
		r, err := tpm2.Quote{
			SignHandle: ak.named(), QualifyingData: tpm2.TPM2BData{Buffer: binding[:]},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: quoted(),
		}.Execute(t.t)
		if err != nil {
			return err
		}
		statement, err := r.Quoted.Contents()
		if err != nil {
			return err
		}
		q, err := statement.Attested.Quote()
		if err != nil {
			return err
		}
		v, err := tpm2.PCRRead{PCRSelectionIn: quoted()}.Execute(t.t)
		if err != nil {
			return err
		}
		h := sha256.New()
		m.Pcrs = nil
		for _, d := range v.PCRValues.Digests {
			m.Pcrs = append(m.Pcrs, d.Buffer)
			h.Write(d.Buffer)
		}
		if len(m.Pcrs) != len(wire.QuotedPCRs()) {
			return fmt.Errorf("the TPM has %d of %d PCRs in its SHA-256 bank", len(m.Pcrs), len(wire.QuotedPCRs()))
		}
		if !hmac.Equal(h.Sum(nil), q.PCRDigest.Buffer) {
			continue
		}
		m.Quote = r.Quoted.Bytes()
		m.QuoteSignature, err = asn1Signature(&r.Signature)
		return err
	}
	return errors.New("the PCRs change all the time")
}

func (t *TPM) certify(ak *object, binding [32]byte, m *redoubtv1.TPMEvidence) error {
	r, err := tpm2.Certify{
		ObjectHandle: t.device.named(), SignHandle: ak.named(), QualifyingData: tpm2.TPM2BData{Buffer: binding[:]},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(t.t)
	if err != nil {
		return err
	}
	if m.DevicePublic, err = area(t.device.public); err != nil {
		return err
	}
	m.Certification = r.CertifyInfo.Bytes()
	m.CertificationSignature, err = asn1Signature(&r.Signature)
	return err
}

// activate opens the credential. It unloads the device key to make room for the endorsement key.
func (t *TPM) activate(ak *object, c *redoubtv1.TPMChallenge, binding [32]byte, m *redoubtv1.TPMEvidence) error {
	t.unload()
	ek, _, err := t.endorsement()
	if err != nil {
		return err
	}
	defer t.flush(ek)
	r, err := tpm2.ActivateCredential{
		ActivateHandle: ak.named(),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, endorsementPolicy)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: c.GetCredential()}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: c.GetSecret()},
	}.Execute(t.t)
	if err != nil {
		return err
	}
	h := hmac.New(sha256.New, r.CertInfo.Buffer)
	h.Write(binding[:])
	m.Activation = h.Sum(nil)
	return nil
}

// endorsementPolicy is the policy of the templates: whoever may use the endorsement hierarchy may use its keys.
func endorsementPolicy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: nonce}.Execute(t)
	return err
}

// log returns as much of the measured boot log as the coordinator looks at. Without a log the node merely does not count as
// measured; the coordinator tells administrators so.
func (t *TPM) log() []byte {
	if t.eventLog == "" {
		return nil
	}
	f, err := os.Open(t.eventLog)
	if err != nil {
		return nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, eventlog.MaxSize+1))
	if err != nil || len(raw) > eventlog.MaxSize {
		return nil
	}
	l, err := eventlog.Parse(raw)
	if err != nil {
		// Let the coordinator say what is wrong with it.
		return raw[:min(len(raw), wire.MaxEventLog)]
	}
	out, err := l.Trim(wire.QuotedPCRs(), wire.MaxEventLog)
	if err != nil {
		return nil
	}
	return out
}
