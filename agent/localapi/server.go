package localapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	pb "google.golang.org/protobuf/proto"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

// Backend is the agent.
type Backend interface {
	Status(context.Context) (*redoubtv1.Status, error)
	// Up returns when the data path is running; until then it reports progress.
	Up(ctx context.Context, r *redoubtv1.UpRequest, progress func(step string)) (*redoubtv1.Status, error)
	Down(context.Context) error
	// Ping sends the requested number of echo requests, or keeps going until the context ends if the count is zero.
	Ping(ctx context.Context, r *redoubtv1.PingRequest, emit func(*redoubtv1.PingResponse) error) error
	Whois(context.Context, netip.Addr) (*redoubtv1.WhoisResponse, error)
	Why(context.Context, *redoubtv1.WhyRequest) (*redoubtv1.WhyResponse, error)
	Underlay(context.Context) (*redoubtv1.UnderlayResponse, error)
	// Posture reads everything again first if refresh is set.
	Posture(ctx context.Context, refresh bool) (*redoubtv1.PostureResponse, error)
}

const (
	// Host is the host that requests must name.
	Host = "redoubt"

	maxBody  = 64 << 10
	watchGap = time.Second
)

// Server serves a Backend.
type Server struct {
	http *http.Server
	done chan struct{}
	// stop ends the streams, which otherwise last as long as their callers want.
	stop context.CancelFunc
	once sync.Once
}

// Serve answers on l, which it owns, until Close.
func Serve(l net.Listener, b Backend, access Access, log *slog.Logger) *Server {
	base, stop := context.WithCancel(context.Background())
	s := &Server{done: make(chan struct{}), stop: stop}
	path, handler := redoubtv1connect.NewLocalServiceHandler(&service{b, access}, connect.WithReadMaxBytes(maxBody))
	mux := http.NewServeMux()
	mux.Handle(path, handler)
	s.http = &http.Server{
		Handler:           guard(http.MaxBytesHandler(mux, maxBody)),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if g, ok := c.(*guest); ok {
				return context.WithValue(ctx, callerKey{}, g.caller)
			}
			return ctx
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(&doorkeeper{Listener: l}); !errors.Is(err, http.ErrServerClosed) {
			log.Error("local interface ended", "err", err)
		}
	}()
	return s
}

// Close ends all calls and waits for them.
func (s *Server) Close() {
	s.once.Do(func() {
		s.stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.http.Shutdown(ctx) != nil {
			_ = s.http.Close() // its listener is closed already
		}
	})
	<-s.done
}

// guard rejects what a browser might send.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != Host || r.Header.Get("Origin") != "" {
			http.Error(w, "this is the agent's interface for programs on this machine", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

type service struct {
	b      Backend
	access Access
}

var _ redoubtv1connect.LocalServiceHandler = (*service)(nil)

func (s *service) Status(ctx context.Context, _ *redoubtv1.StatusRequest) (*redoubtv1.StatusResponse, error) {
	st, err := s.b.Status(ctx)
	if err != nil {
		return nil, err
	}
	return &redoubtv1.StatusResponse{Status: st}, nil
}

func (s *service) Watch(ctx context.Context, _ *redoubtv1.WatchRequest, out *connect.ServerStream[redoubtv1.WatchResponse]) error {
	t := time.NewTicker(watchGap)
	defer t.Stop()
	for last := (*redoubtv1.Status)(nil); ; {
		st, err := s.b.Status(ctx)
		if err != nil {
			return err
		}
		if !pb.Equal(st, last) {
			if err := out.Send(&redoubtv1.WatchResponse{Status: st}); err != nil {
				return err
			}
			last = st
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

func (s *service) Up(ctx context.Context, r *redoubtv1.UpRequest, out *connect.ServerStream[redoubtv1.UpResponse]) error {
	if !s.access.MayChange(callerOf(ctx)) {
		return errDenied
	}
	st, err := s.b.Up(ctx, r, func(step string) {
		// If the caller is gone the context ends; a step that was not delivered has no other consequence.
		_ = out.Send(&redoubtv1.UpResponse{Step: step})
	})
	if err != nil {
		return failed(err)
	}
	return out.Send(&redoubtv1.UpResponse{Running: true, Status: st})
}

func (s *service) Down(ctx context.Context, _ *redoubtv1.DownRequest) (*redoubtv1.DownResponse, error) {
	if !s.access.MayChange(callerOf(ctx)) {
		return nil, errDenied
	}
	if err := s.b.Down(ctx); err != nil {
		return nil, failed(err)
	}
	return &redoubtv1.DownResponse{}, nil
}

// Limits of the time between pings, which are open to everyone on the machine.
const (
	MinPingInterval = 200 * time.Millisecond
	MaxPingInterval = time.Minute
)

func (s *service) Ping(ctx context.Context, r *redoubtv1.PingRequest, out *connect.ServerStream[redoubtv1.PingResponse]) error {
	interval := time.Duration(r.GetIntervalMs()) * time.Millisecond
	if interval == 0 {
		interval = time.Second
	}
	r.IntervalMs = uint32(min(max(interval, MinPingInterval), MaxPingInterval).Milliseconds())
	return failed(s.b.Ping(ctx, r, out.Send))
}

func (s *service) Whois(ctx context.Context, r *redoubtv1.WhoisRequest) (*redoubtv1.WhoisResponse, error) {
	text := strings.TrimSpace(r.GetAddress())
	a, err := netip.ParseAddr(text)
	if err != nil {
		ap, perr := netip.ParseAddrPort(text)
		if perr != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("want an address, or address:port"))
		}
		a = ap.Addr()
	}
	w, err := s.b.Whois(ctx, a.Unmap())
	if err != nil {
		return nil, failed(err)
	}
	return w, nil
}

func (s *service) Why(ctx context.Context, r *redoubtv1.WhyRequest) (*redoubtv1.WhyResponse, error) {
	if r.GetProtocol() > 255 || r.GetPort() > 65535 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("protocols are 0 to 255, and ports 0 to 65535"))
	}
	w, err := s.b.Why(ctx, r)
	if err != nil {
		return nil, failed(err)
	}
	return w, nil
}

func (s *service) Underlay(ctx context.Context, _ *redoubtv1.UnderlayRequest) (*redoubtv1.UnderlayResponse, error) {
	u, err := s.b.Underlay(ctx)
	if err != nil {
		return nil, failed(err)
	}
	return u, nil
}

func (s *service) Posture(ctx context.Context, r *redoubtv1.PostureRequest) (*redoubtv1.PostureResponse, error) {
	if r.GetRefresh() && !s.access.MayChange(callerOf(ctx)) {
		return nil, errDenied
	}
	p, err := s.b.Posture(ctx, r.GetRefresh())
	if err != nil {
		return nil, failed(err)
	}
	return p, nil
}

// Error is a failure with its code, for backends.
type Error struct {
	Code connect.Code
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// failed gives an error the code by which callers tell failures apart.
func failed(err error) error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return connect.NewError(e.Code, e.Err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return connect.NewError(connect.CodeInternal, err)
}
