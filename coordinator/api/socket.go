package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

// Host is the host name that clients use on the socket.
const Host = "coordinator"

// maxRequest bounds a request; the largest is a policy.
const maxRequest = 4 << 20

// maxSocketPath is the longest socket path that the system accepts.
const maxSocketPath = 104

type callerKey struct{}

// WithCaller returns a context that names the caller.
func WithCaller(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, callerKey{}, who)
}

// Caller returns the caller's name, for the audit log.
func Caller(ctx context.Context) string {
	if who, ok := ctx.Value(callerKey{}).(string); ok {
		return who
	}
	return "the coordinator's own process"
}

// Server serves Admin on a unix socket.
type Server struct {
	http *http.Server
	l    *socket
	done chan struct{}
}

// Serve creates a socket of mode 0600 at path and serves a on it. It replaces a socket that nobody listens on.
func Serve(path string, a *Admin) (*Server, error) {
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(redoubtv1connect.NewAdminServiceHandler(a, connect.WithReadMaxBytes(maxRequest)))
	s := &Server{l: l, done: make(chan struct{}), http: &http.Server{
		Handler: local(mux), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(a.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if known, ok := c.(*call); ok {
				ctx = directory.From(WithCaller(ctx, "uid "+strconv.Itoa(known.uid)), "admin socket")
			}
			return ctx
		},
	}}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l)
	}()
	return s, nil
}

// Close stops the service and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// local refuses requests that a page in a browser could have made.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != Host || len(r.Header.Values("Origin")) != 0 {
			http.Error(w, "this socket is for redoubt-coordinator's own commands", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// socket is a unix socket that checks who connects.
type socket struct {
	*net.UnixListener
	path string
}

func listen(path string) (*socket, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("admin socket %s: longer than %d characters; choose a shorter one with --admin-socket", path, maxSocketPath)
	}
	if err := vacate(path); err != nil {
		return nil, err
	}
	// Create it under another name, so that others can never connect before its mode is set.
	hidden := filepath.Join(filepath.Dir(path), ".admin."+strconv.Itoa(os.Getpid()))
	if len(hidden) > maxSocketPath {
		hidden = path
	}
	_ = os.Remove(hidden)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, path)); err != nil {
		_ = l.Close()
		_ = os.Remove(hidden)
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// vacate removes a stale socket, and nothing else.
func vacate(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("admin socket %s: there is a file of that name that is not a socket; remove it or choose another name", path)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("admin socket %s: another coordinator listens there; choose another name with --admin-socket", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	return nil
}

// Accept implements net.Listener. It closes connections from other users.
func (s *socket) Accept() (net.Conn, error) {
	for {
		c, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(c)
		if err != nil || uid != 0 && uid != os.Geteuid() {
			_ = c.Close()
			continue
		}
		return &call{c, uid}, nil
	}
}

// Close implements net.Listener.
func (s *socket) Close() error {
	_ = os.Remove(s.path)
	return s.UnixListener.Close()
}

// call is a connection whose peer is known.
type call struct {
	*net.UnixConn
	uid int
}

// NewClient returns a client for the coordinator that listens on a socket.
func NewClient(path string) redoubtv1connect.AdminServiceClient {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}
	return redoubtv1connect.NewAdminServiceClient(&http.Client{Transport: transport}, "http://"+Host)
}
