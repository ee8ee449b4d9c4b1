package attest

import (
	"errors"
	"io"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Token is the attestor for machines that bring nothing but a join token. Its signature is checked where all enrolments are;
// it shows who let the machine in, and nothing about the machine.
type Token struct{}

// KindToken is the kind of evidence of a machine that has only a token.
const KindToken = "token"

// Kind implements Attestor.
func (Token) Kind() string { return KindToken }

// Begin implements Attestor.
func (Token) Begin(_ time.Time, _ io.Reader, c Claim, _ []byte) ([]byte, State, error) {
	if c.Token.IsZero() {
		return nil, nil, errors.New("there is no join token")
	}
	return nil, c, nil
}

// Again implements Attestor: a token proves nothing a second time.
func (Token) Again(time.Time, Claim, []byte) ([]byte, State, error) {
	return nil, nil, &UnableError{"a join token is shown once"}
}

// Finish implements Attestor.
func (Token) Finish(_ time.Time, s State, evidence []byte, _ [32]byte) (Attributes, error) {
	c, ok := s.(Claim)
	if !ok {
		return Attributes{}, errState
	}
	if len(evidence) != 0 {
		return Attributes{}, errors.New("evidence of kind token is empty")
	}
	return Attributes{DeviceID: "device:" + c.Device.String(), Level: cert.LevelToken, Checks: []string{"join token"}}, nil
}
