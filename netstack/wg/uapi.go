package wg

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/acceptor"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
)

const (
	uapiTimeout = 5 * time.Second // for a whole request
	uapiConns   = 16              // at once; others wait
	uapiLine    = 1 << 10
	uapiText    = 1 << 20 // of a "set" operation, which is read to its end before it is refused
)

// The error numbers of the answers, as on Linux.
const (
	errnoOK         = 0
	errnoPermission = -1
	errnoIO         = -5
	errnoInvalid    = -22
)

// uapi serves an engine's state on a socket.
type uapi struct {
	listener net.Listener
	state    func(io.Writer) error
	ctx      context.Context // until Close
	cancel   context.CancelFunc

	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]struct{}
	ended bool
}

// startUAPI serves clients on l until Close. state writes the answer to "get".
func startUAPI(l net.Listener, state func(io.Writer) error) *uapi {
	u := &uapi{listener: l, state: state, conns: map[net.Conn]struct{}{}}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	u.wg.Go(u.accept)
	return u
}

func (u *uapi) accept() {
	slots, log := make(chan struct{}, uapiConns), slog.New(slog.DiscardHandler) // who asks sees that nobody answers
	for {
		slots <- struct{}{}
		c, err := acceptor.Next(u.ctx, u.listener, log)
		if err != nil {
			return
		}
		if !u.add(c) {
			c.Close()
			return
		}
		u.wg.Go(func() {
			defer func() { <-slots }()
			defer u.remove(c)
			u.serve(c)
		})
	}
}

func (u *uapi) add(c net.Conn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.ended {
		u.conns[c] = struct{}{}
	}
	return !u.ended
}

func (u *uapi) remove(c net.Conn) {
	c.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.conns, c)
}

// Close stops serving and waits.
func (u *uapi) Close() error {
	u.mu.Lock()
	again := u.ended
	u.ended = true
	u.cancel()
	for c := range u.conns {
		c.Close()
	}
	u.mu.Unlock()
	if again {
		u.wg.Wait()
		return nil
	}
	err := u.listener.Close()
	u.wg.Wait()
	return err
}

// serve answers one client's requests, one after the other.
func (u *uapi) serve(c net.Conn) {
	r := bufio.NewReaderSize(c, uapiLine)
	for {
		c.SetDeadline(time.Now().Add(uapiTimeout))
		var answer bytes.Buffer
		errno, err := u.answer(&answer, r)
		if err != nil {
			return
		}
		fmt.Fprintf(&answer, "errno=%d\n\n", errno)
		if _, err := c.Write(answer.Bytes()); err != nil {
			return
		}
	}
}

var errUAPI = errors.New("not a question")

// answer reads a request and answers it. After an error the connection is unusable.
func (u *uapi) answer(w *bytes.Buffer, r *bufio.Reader) (errno int, err error) {
	op, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	switch string(op) {
	case "get=1\n":
		blank, err := r.ReadByte()
		if err != nil || blank != '\n' {
			return errnoInvalid, err
		}
		return u.get(w), nil
	case "set=1\n":
		return errnoPermission, skipSet(r)
	}
	return 0, errUAPI
}

// get answers with the state, or with just an error number.
func (u *uapi) get(w *bytes.Buffer) (errno int) {
	if err := u.state(w); err != nil {
		w.Reset()
		return errnoIO
	}
	return errnoOK
}

// skipSet reads up to the blank line that ends a "set".
func skipSet(r *bufio.Reader) error {
	for left := uapiText; left > 0; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 1 {
			return nil
		}
		left -= len(line)
	}
	return errUAPI
}

// public lists the state lines that any permitted client may see. Anything not listed stays private, including new kinds of
// secrets.
var public = map[string]bool{
	"listen_port": true, "fwmark": true, "public_key": true, "protocol_version": true, "endpoint": true,
	"last_handshake_time_sec": true, "last_handshake_time_nsec": true, "tx_bytes": true, "rx_bytes": true,
	"persistent_keepalive_interval": true, "allowed_ip": true,
}

// publish copies the public part of a state. Of several candidates, which other programs know nothing of, it shows the first.
func publish(w io.Writer, all io.Reader) error {
	var b bytes.Buffer
	lines := bufio.NewScanner(all)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if !public[name] {
			continue
		}
		if name == "endpoint" {
			list, _, err := bind.ParseText(value)
			if err != nil {
				continue
			}
			value = list[0].String()
		}
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("WireGuard state: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}
