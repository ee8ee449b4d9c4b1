package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// policy is the policy of the story.
const policy = `{
  // Engineers reach the web servers, and web servers reach the database.
  "groups":    {"group:eng": ["ann@example.com"]},
  "tagOwners": {"tag:web": ["group:eng"], "tag:db": ["group:eng"]},
  "grants": [
    {"src": ["group:eng"], "dst": ["tag:web"], "ip": ["tcp:8080", "icmp:*"]},
    {"src": ["tag:web"],   "dst": ["tag:db"],  "ip": ["tcp:5432"]},
  ],
  "tests": [
    {"src": "ann@example.com", "accept": ["tag:web:8080"], "deny": ["tag:db:5432"]},
  ],
}
`

// noWeb is the policy that sabotages the allow step: only ping.
const noWeb = `{
  "tagOwners": {"tag:web": ["ann@example.com"], "tag:db": ["ann@example.com"]},
  "grants": [{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["icmp:*"]}],
}`

// open is the policy that sabotages the deny step.
const open = `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`

const (
	webPort = 8080
	sshPort = 22
	dbPort  = 5432
)

// story runs the steps of the demo.
type story struct {
	out      printer
	sabotage string

	mesh            *mesh.Mesh
	laptop, web, db *mesh.Node
	status          map[*mesh.Node]mesh.Status
}

func (s *story) tell(ctx context.Context, bin string) error {
	steps := []struct {
		title string
		run   func(context.Context) error
	}{
		{"A coordinator, and a policy", func(ctx context.Context) error { return s.coordinator(ctx, bin) }},
		{"Three machines join: a code each, nothing else to configure or trust", s.enrol},
		{"Encrypted tunnels, peer to peer", s.tunnel},
		{"An allowed connection, and who it was", s.allow},
		{"Denied ones, refused at once, with the reason", s.deny},
		{"A node is revoked while its connection lives", s.revoke},
	}
	for n, step := range steps {
		s.out.step(n+1, step.title)
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("step %d: %w", n+1, err)
		}
	}
	return nil
}

func (s *story) coordinator(ctx context.Context, bin string) (err error) {
	if s.mesh, err = mesh.New(bin); err != nil {
		return err
	}
	s.out.typed("vm", "redoubt-coordinator serve --data DIR --url "+s.mesh.URL())
	if err := s.mesh.StartCoordinator(ctx); err != nil {
		return err
	}
	s.out.typed("vm", "redoubt-coordinator policy apply policy.hujson")
	rules := policy
	switch s.sabotage {
	case "allow":
		rules = noWeb
	case "deny":
		rules = open
	}
	said, err := s.mesh.Apply(ctx, rules)
	if err != nil {
		return err
	}
	s.out.said(said)
	s.out.good("group:eng reaches tag:web on 8080, tag:web reaches tag:db on 5432, and nothing else passes: there is no trusted inside")
	return nil
}

func (s *story) enrol(ctx context.Context) error {
	s.status = map[*mesh.Node]mesh.Status{}
	for _, who := range []struct {
		node **mesh.Node
		name string
		flag []string
	}{
		{&s.laptop, "laptop", []string{"--user", "ann@example.com"}},
		{&s.web, "web", []string{"--tag", "tag:web"}},
		{&s.db, "db", []string{"--tag", "tag:db"}},
	} {
		s.out.typed("vm", "redoubt-coordinator token create "+strings.Join(who.flag, " "))
		code, err := s.mesh.Token(ctx, who.flag...)
		if err != nil {
			return err
		}
		if s.sabotage == "enrol" && who.name == "db" {
			code = code[:len(code)-5] + "AAAAA"
		}
		if *who.node, err = s.mesh.AddNode(ctx, who.name); err != nil {
			return err
		}
		s.out.typed(who.name, "redoubt up "+code[:12]+"…"+code[len(code)-6:])
		begin := time.Now()
		if _, err := (*who.node).Up(ctx, code); err != nil {
			return err
		}
		st, err := (*who.node).Status(ctx)
		if err != nil {
			return err
		}
		if st.State != "running" || !st.V4().IsValid() || time.Until(st.Node.CertificateExpires) <= 0 {
			return fmt.Errorf("%s is %q with the addresses %v", who.name, st.State, st.Node.Addresses)
		}
		s.status[*who.node] = st
		identity := st.Node.User + strings.Join(st.Node.Tags, ",")
		s.out.good("%s is %s at %s; certificate for %.0f min; %d ms", identity, st.Node.Name, st.V4(),
			time.Until(st.Node.CertificateExpires).Minutes(), time.Since(begin).Milliseconds())
	}
	return nil
}

func (s *story) tunnel(ctx context.Context) error {
	if s.sabotage == "tunnel" {
		if err := s.web.Host.Ports[0].Cut(); err != nil {
			return err
		}
	}
	s.out.typed("laptop", "redoubt ping web -c 3")
	said, err := s.laptop.Run(ctx, "ping", "web", "-c", "3")
	if err != nil {
		return err
	}
	s.out.said(said)
	st, err := s.laptop.Status(ctx)
	if err != nil {
		return err
	}
	if len(st.Peers) != 1 || st.Peers[0].Name != "web" || st.Peers[0].LastHandshake.IsZero() {
		return fmt.Errorf("the laptop should know web alone, with a handshake; it says %+v", st.Peers)
	}
	s.out.good("WireGuard to web, %s at %s; of db the laptop does not even know that it exists", st.Peers[0].Path, st.Peers[0].Endpoint)
	return nil
}

// serve listens on a node's overlay address and sends each client a line every 10 ms for as long as the connection lives.
func (s *story) serve(n *mesh.Node, port uint16) (net.Listener, error) {
	l, err := n.Host.Listen(netip.AddrPortFrom(s.status[n].V4(), port))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for i := 0; ; i++ {
					if _, err := fmt.Fprintf(c, "line %d\n", i); err != nil {
						return
					}
					<-time.After(10 * time.Millisecond)
				}
			}()
		}
	}()
	return l, nil
}

// patience is how long one step may take on a busy machine.
const patience = 30 * time.Second

func (s *story) target(n *mesh.Node, port uint16) string {
	return netip.AddrPortFrom(s.status[n].V4(), port).String()
}

func (s *story) allow(ctx context.Context) error {
	l, err := s.serve(s.web, webPort)
	if err != nil {
		return err
	}
	defer l.Close()
	s.out.typed("laptop", "curl http://"+s.target(s.web, webPort))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begin := time.Now()
	c, err := s.laptop.Host.Dial(ctx, "tcp", s.target(s.web, webPort))
	if err != nil {
		return err
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "line 0\n" {
		return fmt.Errorf("web answered %q: %w", line, err)
	}
	s.out.good("connected and answered in %.1f ms", float64(time.Since(begin).Microseconds())/1000)
	from, _, _ := net.SplitHostPort(c.LocalAddr().String())
	s.out.typed("web", "redoubt whois "+from)
	said, err := s.web.Run(ctx, "whois", from)
	if err != nil {
		return err
	}
	if !strings.Contains(said, "ann@example.com") {
		return fmt.Errorf("web does not know who it was: %q", said)
	}
	s.out.said(said)
	return nil
}

func (s *story) deny(ctx context.Context) error {
	s.out.typed("laptop", "ssh "+s.status[s.web].V4().String())
	if err := s.refuse(ctx, s.web, sshPort); err != nil {
		return err
	}
	line, err := awaitLine(ctx, s.laptop.Agent.Output, "denied", s.status[s.web].V4().String())
	if err != nil {
		return err
	}
	s.out.note("The laptop's log says who, what, and which rule came nearest:")
	_, line, _ = strings.Cut(line, "msg=")
	s.out.note(line)
	s.out.typed("laptop", "psql -h "+s.status[s.db].V4().String())
	return s.refuse(ctx, s.db, dbPort)
}

// refuse checks that the laptop cannot reach a server that is running.
func (s *story) refuse(ctx context.Context, n *mesh.Node, port uint16) error {
	l, err := s.serve(n, port)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begin := time.Now()
	c, err := s.laptop.Host.Dial(ctx, "tcp", s.target(n, port))
	if err == nil {
		c.Close()
		return fmt.Errorf("the laptop reached port %d of %s, which no rule allows", port, n.Name)
	}
	took := time.Since(begin)
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EHOSTUNREACH) &&
		!errors.Is(err, syscall.ENETUNREACH) {
		return fmt.Errorf("refused, but not at once: %w", err)
	}
	s.out.refused("refused after %.1f ms by the laptop itself: %v", float64(took.Microseconds())/1000, cause(err))
	return nil
}

// awaitLine waits for a log line that contains all the words.
func awaitLine(ctx context.Context, log func() string, words ...string) (string, error) {
	for {
		for line := range strings.Lines(log()) {
			found := true
			for _, w := range words {
				found = found && strings.Contains(line, w)
			}
			if found {
				return strings.TrimSpace(line), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no line of the log has %q", words)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *story) revoke(ctx context.Context) error {
	l, err := s.serve(s.web, webPort)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := s.laptop.Host.Dial(ctx, "tcp", s.target(s.web, webPort))
	if err != nil {
		return err
	}
	defer c.Close()
	lines := make(chan time.Time, 1)
	dead := make(chan death, 1)
	go watch(c, lines, dead)
	for range 5 {
		select {
		case <-lines:
		case d := <-dead:
			return fmt.Errorf("the connection died before anybody was revoked: %w", d.err)
		case <-ctx.Done():
			return errors.New("the connection is silent")
		}
	}
	s.out.good("the laptop reads a line from web every 10 ms, over one TCP connection")
	s.out.typed("vm", "redoubt-coordinator node revoke laptop")
	begin := time.Now()
	if s.sabotage != "revoke" {
		said, err := s.mesh.Admin(ctx, "node", "revoke", "laptop")
		if err != nil {
			return err
		}
		s.out.said(said)
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		select {
		case <-lines:
		case d := <-dead:
			s.out.refused("the connection was dead %.0f ms after the command was typed: %v", max(0, float64(d.at.Sub(begin).Microseconds())/1000),
				cause(d.err))
			return s.afterwards(ctx)
		case <-wait.Done():
			return errors.New("the connection of a revoked node lives on")
		}
	}
}

// afterwards checks that the revoked node knows, and that it cannot connect again.
func (s *story) afterwards(ctx context.Context) error {
	dial, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if c, err := s.laptop.Host.Dial(dial, "tcp", s.target(s.web, webPort)); err == nil {
		c.Close()
		return errors.New("a revoked node connected")
	}
	for {
		st, err := s.laptop.Status(ctx)
		if err != nil {
			return err
		}
		if st.State == "revoked" {
			s.out.good("the laptop's own status is \"revoked\", and it connects to nothing any more")
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the laptop's status is %q", st.State)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// death records how and when a connection ended.
type death struct {
	at  time.Time
	err error
}

// watch reads lines until the connection ends.
func watch(c net.Conn, lines chan<- time.Time, dead chan<- death) {
	r := bufio.NewReader(c)
	for {
		_, err := r.ReadString('\n')
		now := time.Now()
		if err != nil {
			dead <- death{now, err}
			return
		}
		select {
		case lines <- now:
		default:
		}
	}
}

// cause returns the system error behind err, if there is one.
func cause(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	if errors.Is(err, io.EOF) {
		return errors.New("closed")
	}
	return err
}

// logs prints the programs' logs, for those who need more than the story.
func (s *story) logs() {
	if s.mesh == nil {
		return
	}
	if s.mesh.Serve != nil {
		fmt.Fprintf(os.Stderr, "\n--- coordinator\n%s", s.mesh.Serve.Output())
	}
	for _, n := range []*mesh.Node{s.laptop, s.web, s.db} {
		if n != nil && n.Agent != nil {
			fmt.Fprintf(os.Stderr, "\n--- agent on %s\n%s", n.Name, n.Agent.Output())
		}
	}
}
