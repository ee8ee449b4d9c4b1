package coordinator

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestIdleConnections opens ten thousand silent connections. Honest machines are served all the while, and the idle connections
// are soon closed.
func TestIdleConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const many = 10_000
		idle := make([]net.Conn, many)
		for i := range idle {
			c, err := r.net.dial()
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // half of them begin a handshake
				_, _ = c.Write([]byte{22, 3, 1})
			}
			idle[i] = c
		}
		synctest.Wait()
		start := time.Now()
		s := r.join("honest", &redoubtv1.CreateTokenRequest{}).attach(nil)
		settle()
		if s.netmap() == nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("an honest node was served after %v: %v", time.Since(start), s.failed())
		}
		time.Sleep(10*time.Second - time.Since(start))
		synctest.Wait()
		for i, c := range idle {
			if _, err := c.Read(make([]byte, 64)); err == nil {
				if _, err = io.Copy(io.Discard, c); err != nil {
					t.Fatalf("connection %d: %v", i, err)
				}
			}
			c.Close()
		}
		if time.Since(start) > 10*time.Second {
			t.Errorf("the idle connections were closed after %v", time.Since(start))
		}
		s.close()
	})
}

// TestBodies sends endless bodies and headers before authenticating, and is cut off.
func TestBodies(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const size = 10 << 20
		for name, head := range map[string]string{
			"to the control stream": fmt.Sprintf("POST /v1/control HTTP/1.1\r\nHost: c\r\nContent-Length: %d\r\n\r\n", size),
			"with the upgrade":      fmt.Sprintf("GET /v1/control HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: redoubt/1\r\nContent-Length: %d\r\n\r\n", size),
			"in chunks":             "GET /healthz HTTP/1.1\r\nHost: c\r\nTransfer-Encoding: chunked\r\n\r\na00000\r\n",
			"nowhere":               fmt.Sprintf("PUT /nowhere HTTP/1.1\r\nHost: c\r\nContent-Length: %d\r\n\r\n", size),
			"in headers":            "GET /v1/control HTTP/1.1\r\nHost: c\r\nX-Long: ",
		} {
			c, err := r.dial(nil)
			if err != nil {
				t.Fatal(err)
			}
			answer := make(chan int, 1)
			go func() {
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					answer <- 0
					return
				}
				answer <- resp.StatusCode
			}()
			sent, err := c.Write([]byte(head))
			for err == nil && sent < size {
				var n int
				n, err = c.Write([]byte(strings.Repeat("x", 16<<10)))
				sent += n
			}
			if sent > 512<<10 {
				t.Errorf("%s: %d bytes were taken", name, sent)
			}
			if code := <-answer; code != http.StatusRequestEntityTooLarge && code != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: answered %d", name, code)
			}
			c.Close()
		}
	})
}

func TestRequestsThatAreNoStream(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		for request, want := range map[string]int{
			"GET /healthz HTTP/1.1\r\nHost: c\r\n\r\n":                                                       http.StatusOK,
			"GET /v1/control HTTP/1.1\r\nHost: c\r\n\r\n":                                                    http.StatusUpgradeRequired,
			"GET /v1/control HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n":       http.StatusUpgradeRequired,
			"POST /v1/control HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: redoubt/1\r\n\r\n":      http.StatusMethodNotAllowed,
			"GET /redoubt.v1.AdminService/ListNodes HTTP/1.1\r\nHost: coordinator\r\n\r\n":                   http.StatusNotFound,
			"GET /v1/../v1/control HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: redoubt/1\r\n\r\n": http.StatusMovedPermanently,
			"nonsense\r\n\r\n": http.StatusBadRequest,
		} {
			c, err := r.dial(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("%q: %v", request, err)
			}
			if resp.StatusCode != want && want != http.StatusMovedPermanently || resp.StatusCode == http.StatusSwitchingProtocols {
				t.Errorf("%q: %s, want %d", request, resp.Status, want)
			}
			c.Close()
		}
	})
}

// TestEphemeralNodes checks that ephemeral nodes, and only these, are removed after being away for long.
func TestEphemeralNodes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		gone := r.join("gone", &redoubtv1.CreateTokenRequest{Ephemeral: true})
		here := r.join("here", &redoubtv1.CreateTokenRequest{Ephemeral: true}).attach(nil)
		r.join("plain", &redoubtv1.CreateTokenRequest{})
		s := gone.attach(nil)
		time.Sleep(10 * time.Minute)
		s.close()
		time.Sleep(32 * time.Minute)
		snap := r.co.directory.Snapshot()
		if _, there := snap.Named("gone"); there || snap.Len() != 2 {
			t.Errorf("%d nodes are left", snap.Len())
		}
		_, _, err := gone.open(proto.Version{})
		refusedWith(t, err, redoubtv1.Refusal_CODE_DELETED, "")
		here.close()
	})
}
