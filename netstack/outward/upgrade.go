package outward

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxHead bounds the size of a message's head.
const maxHead = 16 << 10

// Upgrade asks a server to switch a connection to another protocol (RFC 9110, section 7.8) and reads exactly the head of its
// answer from r: if granted, the bytes that follow belong to that protocol. The caller closes the answer's body.
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

// HeadOf returns a reader for the head of a message that consumes nothing after it from r.
func HeadOf(r io.Reader) *bufio.Reader {
	return bufio.NewReaderSize(oneByte{io.LimitReader(r, maxHead)}, 16)
}

// oneByte reads one byte at a time, so that a reader above it never reads ahead.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }
