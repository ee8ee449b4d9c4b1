package wg

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const fullState = `private_key=0011
listen_port=41641
fwmark=51820
public_key=aabb
preshared_key=2233
protocol_version=1
endpoint=?192.0.2.1:7,[2001:db8::1]:7
last_handshake_time_sec=1
last_handshake_time_nsec=2
tx_bytes=3
rx_bytes=4
persistent_keepalive_interval=0
allowed_ip=100.64.0.2/32
some_future_secret=4455
`

const publicState = `listen_port=41641
fwmark=51820
public_key=aabb
protocol_version=1
endpoint=192.0.2.1:7
last_handshake_time_sec=1
last_handshake_time_nsec=2
tx_bytes=3
rx_bytes=4
persistent_keepalive_interval=0
allowed_ip=100.64.0.2/32
`

func serveState(t *testing.T, state func(io.Writer) error) (*uapi, func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wg.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	u := startUAPI(l, state)
	t.Cleanup(func() { u.Close() })
	return u, func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
}

// readAnswer reads up to the blank line that ends an answer.
func readAnswer(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		if line == "\n" {
			return b.String()
		}
		b.WriteString(line)
	}
}

func TestUAPI(t *testing.T) {
	u, dial := serveState(t, func(w io.Writer) error { return publish(w, strings.NewReader(fullState)) })
	c := dial()
	r := bufio.NewReader(c)
	for _, step := range []struct{ ask, want string }{
		{"get=1\n\n", publicState + "errno=0\n"},
		{"set=1\nprivate_key=00\nreplace_peers=true\n\n", "errno=-1\n"},
		{"get=1\nx", "errno=-22\n"},
	} {
		if _, err := io.WriteString(c, step.ask); err != nil {
			t.Fatal(err)
		}
		if got := readAnswer(t, r); got != step.want {
			t.Errorf("%q: got\n%s\nwant\n%s", step.ask, got, step.want)
		}
	}
	for _, hostile := range []string{"boo\n", strings.Repeat("x", uapiLine+1), "set=1\n" + strings.Repeat(strings.Repeat("y", 500)+"\n", 2200)} {
		c := dial()
		_, _ = io.WriteString(c, hostile)
		if b, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) && len(b) > 0 {
			t.Errorf("%.10q: got %q, %v", hostile, b, err)
		}
	}
	for range 2 {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fullListener accepts nothing the first few times, as if there were no file descriptors left, and then one connection.
type fullListener struct {
	fails  int
	conn   chan net.Conn
	closed chan struct{}
}

func (f *fullListener) Accept() (net.Conn, error) {
	if f.fails--; f.fails >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	select {
	case c := <-f.conn:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *fullListener) Addr() net.Addr { return &net.UnixAddr{} }

func (f *fullListener) Close() error {
	close(f.closed)
	return nil
}

// TestUAPINoFileDescriptors checks that a socket that cannot accept connections for a while accepts them afterwards, and that
// it can be closed meanwhile.
func TestUAPINoFileDescriptors(t *testing.T) {
	for name, fails := range map[string]int{"for a while": 10, "for good": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &fullListener{fails: fails, conn: make(chan net.Conn, 1), closed: make(chan struct{})}
				u := startUAPI(l, func(w io.Writer) error { return publish(w, strings.NewReader(fullState)) })
				defer u.Close()
				time.Sleep(time.Minute)
				if fails > 10 {
					return
				}
				ours, theirs := net.Pipe()
				defer ours.Close()
				l.conn <- theirs
				ours.SetDeadline(time.Now().Add(time.Second))
				if _, err := io.WriteString(ours, "get=1\n\n"); err != nil {
					t.Fatal(err)
				}
				if got := readAnswer(t, bufio.NewReader(ours)); got != publicState+"errno=0\n" {
					t.Errorf("got %q", got)
				}
			})
		})
	}
}

func TestUAPIBrokenEngine(t *testing.T) {
	_, dial := serveState(t, func(w io.Writer) error {
		_, _ = io.WriteString(w, "half an answer")
		return ErrClosed
	})
	c := dial()
	if _, err := io.WriteString(c, "get=1\n\n"); err != nil {
		t.Fatal(err)
	}
	if got := readAnswer(t, bufio.NewReader(c)); got != "errno=-5\n" {
		t.Errorf("got %q", got)
	}
}

// FuzzQuestions sends arbitrary requests to the UAPI socket. Nothing but the answer to a "get" ever comes back.
func FuzzQuestions(f *testing.F) {
	for _, q := range []string{"get=1\n\n", "set=1\nprivate_key=00\n\nget=1\n\n", "get=1\n", "set=1\n", "\n", strings.Repeat("x", uapiLine+1)} {
		f.Add([]byte(q))
	}
	f.Fuzz(func(t *testing.T, question []byte) {
		asked := 0
		u := &uapi{state: func(w io.Writer) error {
			asked++
			return publish(w, strings.NewReader(fullState))
		}}
		r := bufio.NewReaderSize(bytes.NewReader(question), uapiLine)
		for range len(question) + 1 {
			var answer bytes.Buffer
			errno, err := u.answer(&answer, r)
			if err != nil {
				break
			}
			if got := answer.String(); (errno == errnoOK) != (got == publicState) || (errno != errnoOK && got != "") {
				t.Errorf("errno %d with %q", errno, got)
			}
		}
		if n := bytes.Count(question, []byte("get=1\n\n")); asked > n {
			t.Errorf("the state was told %d times to %d questions", asked, n)
		}
	})
}

// FuzzState parses text that may have come from another engine.
func FuzzState(f *testing.F) {
	f.Add(fullState)
	f.Add("public_key=" + strings.Repeat("11", 32) + "\nendpoint=192.0.2.1:7\nrx_bytes=18446744073709551615\nlast_handshake_time_sec=-1\n")
	f.Add("=\nlisten_port=65536\n")
	f.Fuzz(func(t *testing.T, text string) {
		st, err := readState(strings.NewReader(text))
		if err != nil && len(st.peers) > 0 {
			t.Error("an error, and peers")
		}
		var b strings.Builder
		if err := publish(&b, strings.NewReader(text)); err == nil {
			for _, secret := range []string{"private_key=", "preshared_key="} {
				for line := range strings.Lines(b.String()) {
					if strings.HasPrefix(line, secret) {
						t.Errorf("it tells %q", line)
					}
				}
			}
		}
	})
}
