package localapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"
	"sync"

	"connectrpc.com/connect"
)

// Caller is the process at the other end of the socket, as reported by the kernel.
type Caller struct {
	Known bool
	UID   uint32
	PID   int32
}

func (c Caller) root() bool { return c.Known && c.UID == 0 }

// Access says who may make changes.
type Access struct {
	operator    uint32
	hasOperator bool
}

// Operator gives a user, by name or number, the same access as root; "" gives it to nobody.
func Operator(name string) (Access, error) {
	if name == "" {
		return Access{}, nil
	}
	if uid, err := strconv.ParseUint(name, 10, 32); err == nil {
		return Access{uint32(uid), true}, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return Access{}, fmt.Errorf("operator %q: %w", name, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return Access{}, fmt.Errorf("operator %q: has no numeric user id on this system", name)
	}
	return Access{uint32(uid), true}, nil
}

// MayChange reports whether a caller may do more than look.
func (a Access) MayChange(c Caller) bool {
	return c.root() || c.Known && a.hasOperator && c.UID == a.operator
}

var errDenied = connect.NewError(connect.CodePermissionDenied, errors.New(
	"only root and the operator may change the node: use sudo, or start the agent with --operator USER"))

type callerKey struct{}

func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// maxPerUser is how many connections one user may hold at once.
const maxPerUser = 64

// doorkeeper asks the kernel whose each connection is, and limits how many each user but root holds. All callers that the
// kernel does not name count as one user.
type doorkeeper struct {
	net.Listener
	mu    sync.Mutex
	count map[Caller]int // without their processes
}

func (d *doorkeeper) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g := &guest{Conn: conn, caller: callerAt(conn)}
		if d.admit(g) {
			return g, nil
		}
		conn.Close()
	}
}

func (d *doorkeeper) admit(g *guest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count == nil {
		d.count = map[Caller]int{}
	}
	who := Caller{Known: g.caller.Known, UID: g.caller.UID}
	if d.count[who] >= maxPerUser && !who.root() {
		return false
	}
	d.count[who]++
	g.leave = sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.count[who]--; d.count[who] == 0 {
			delete(d.count, who)
		}
	})
	return true
}

// guest is a connection with its caller.
type guest struct {
	net.Conn
	caller Caller
	leave  func()
}

func (g *guest) Close() error {
	g.leave()
	return g.Conn.Close()
}
