package outward

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxHead bounds the head of a message.
const maxHead = 16 << 10

// Upgrade asks a server for another protocol on a connection (RFC 9110, section 7.8), and reads the head of its answer from r
// and not a byte more: what follows is that protocol's, where it is granted. The caller closes the answer's body.
func Upgrade(w io.Writer, r io.Reader, host, path, protocol string) (answer *http.Response, granted bool, err error) {
	request := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n"
	if _, err := io.WriteString(w, request); err != nil {
		return nil, false, fmt.Errorf("ask for %s: %w", protocol, err)
	}
	answer, err = http.ReadResponse(HeadOf(r), nil)
	if err != nil {
		return nil, false, fmt.Errorf("it answers something else than HTTP: %w", err)
	}
	return answer, answer.StatusCode == http.StatusSwitchingProtocols && strings.EqualFold(answer.Header.Get("Upgrade"), protocol), nil
}

// HeadOf reads the head of a message and takes nothing that follows it from r.
func HeadOf(r io.Reader) *bufio.Reader {
	return bufio.NewReaderSize(oneByte{io.LimitReader(r, maxHead)}, 16)
}

// oneByte gives a reader above no more than it needs.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }
