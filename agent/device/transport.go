package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

// ErrNone reports that this machine has no usable TPM.
var ErrNone = errors.New("this machine has no TPM 2.0")

// Where a TPM is.
const (
	Auto       = "auto" // the machine's own, if it has one
	Off        = "off"
	unixPrefix = "unix:" // the socket of a TPM simulator that speaks the raw command stream
)

// CheckPlace rejects a place that cannot be a TPM.
func CheckPlace(place string) error {
	path, isUnix := strings.CutPrefix(place, unixPrefix)
	if place == Auto || place == Off || isUnix && path != "" || strings.HasPrefix(place, "/") {
		return nil
	}
	return fmt.Errorf("%.80q is not a TPM: want auto, off, a device such as /dev/tpmrm0, or unix:PATH", place)
}

// InSoftware reports whether a place is that of a TPM simulator.
func InSoftware(place string) bool { return strings.HasPrefix(place, unixPrefix) }

// opener returns a function that opens the TPM at a place.
func opener(place string) (func() (transport.TPMCloser, error), error) {
	if path, ok := strings.CutPrefix(place, unixPrefix); ok {
		return func() (transport.TPMCloser, error) { return dialStream(path) }, nil
	}
	if place == Auto {
		return openSystem()
	}
	return openDevice(place)
}

// commandTimeout is how long a TPM may take for one command: some take minutes to create an RSA key.
const commandTimeout = 2 * time.Minute

// stream is a TPM behind a socket. Commands and responses follow each other without any framing.
type stream struct{ conn net.Conn }

func dialStream(path string) (transport.TPMCloser, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("reach the TPM: %w", err)
	}
	return stream{c}, nil
}

const (
	answerHeader = 10
	maxAnswer    = 64 << 10
)

// Send implements transport.TPM.
func (s stream) Send(command []byte) ([]byte, error) {
	if err := s.conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, err
	}
	if _, err := s.conn.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, answerHeader)
	if _, err := io.ReadFull(s.conn, answer); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(answer[2:])
	if n < answerHeader || n > maxAnswer {
		return nil, fmt.Errorf("the TPM announces an answer of %d bytes", n)
	}
	answer = append(answer, make([]byte, n-answerHeader)...)
	_, err := io.ReadFull(s.conn, answer[answerHeader:])
	return answer, err
}

func (s stream) Close() error { return s.conn.Close() }

// Response codes of a TPM that is busy: the same command succeeds a little later.
const (
	rcYielded = 0x908
	rcTesting = 0x90a
	rcRetry   = 0x922
)

// retries is how often a command is sent again; the pauses in between add up to a few seconds.
const retries = 12

// patient resends commands when the TPM asks for that.
type patient struct{ transport.TPMCloser }

// Send implements transport.TPM.
func (p patient) Send(command []byte) ([]byte, error) {
	for i := 0; ; i++ {
		answer, err := p.TPMCloser.Send(command)
		if err != nil || len(answer) < answerHeader || i == retries {
			return answer, err
		}
		switch binary.BigEndian.Uint32(answer[6:]) {
		case rcYielded, rcTesting, rcRetry:
			time.Sleep(time.Millisecond << min(i, 9))
		default:
			return answer, nil
		}
	}
}
