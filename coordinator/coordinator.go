package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/coordinator/control"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	"github.com/redoubt-mesh/redoubt/coordinator/roots"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
)

// Defaults for an outage if neither the administrator nor the policy says otherwise: how long agents continue without a
// coordinator after their certificates expire, and how long rules that depend on aging facts continue to hold.
const (
	DefaultGrace   = 8 * time.Hour
	DefaultPosture = 15 * time.Minute
)

// housekeeping is how often expired things are removed.
const housekeeping = time.Minute

// StarterPolicy is the name of the policy file that the first start writes next to the data, for people to edit.
const StarterPolicy = "policy.example.hujson"

// Config holds a coordinator's settings and dependencies.
type Config struct {
	Data string // directory, created at the first start
	// URLs are where nodes reach this coordinator, for join codes. Without a URL no join code can be created.
	URLs []string
	// Range and Domain are the mesh's, chosen at the first start; zero means the existing mesh's, or the default.
	Range  netip.Prefix
	Domain string

	// TPMRoots and X509Roots are directories of PEM files: the CAs of TPM manufacturers, and the company CAs whose certificates
	// machines may present. Without the former TPMs are unverified, without the latter no certificate is asked for.
	TPMRoots, X509Roots string

	NodeLifetime         time.Duration // of certificates; 0: the issuer's default, as for the next field
	IntermediateLifetime time.Duration
	Grace                *time.Duration // nil: DefaultGrace

	// OpenStore opens the store in the data directory; nil: bolt.Open.
	OpenStore func(dir string) (store.Store, error)

	Clock    func() time.Time      // nil: time.Now
	Rand     io.Reader             // nil: crypto/rand
	Log      *slog.Logger          // nil: none
	Registry prometheus.Registerer // nil: a private one
	Program  string                // version, for people

	// Relay, if set, serves the streams that nodes open to the relay in this process.
	Relay func(stream net.Conn, certificate []byte) error
}

func (c *Config) complete() error {
	if c.Data == "" {
		return errors.New("coordinator: no data directory")
	}
	if len(c.URLs) > join.MaxURLs {
		return fmt.Errorf("coordinator: %d URLs, at most %d", len(c.URLs), join.MaxURLs)
	}
	for _, u := range c.URLs {
		if err := join.CheckURL(u); err != nil {
			return err
		}
	}
	if err := c.checkPlan(); err != nil {
		return err
	}
	if c.Grace == nil {
		grace := DefaultGrace
		c.Grace = &grace
	}
	if *c.Grace < 0 || *c.Grace > proto.MaxGrace {
		return fmt.Errorf("coordinator: a grace of %v: want 0 to %v", *c.Grace, proto.MaxGrace)
	}
	if c.OpenStore == nil {
		c.OpenStore = openBolt
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	return nil
}

// checkPlan refuses what the first start would refuse, before anything is created.
func (c *Config) checkPlan() error {
	if c.Range.IsValid() {
		if err := ipam.CheckV4(c.Range); err != nil {
			return err
		}
	}
	if c.Domain != "" {
		if err := directory.CheckDomain(c.Domain); err != nil {
			return err
		}
	}
	if l := c.NodeLifetime; l != 0 && (l < issuer.MinNodeLifetime || l > issuer.MaxNodeLifetime) {
		return fmt.Errorf("node certificates of %v: want %v to %v", l, issuer.MinNodeLifetime, issuer.MaxNodeLifetime)
	}
	if l := c.IntermediateLifetime; l != 0 && (l < issuer.MinIntermediateLifetime || l > issuer.MaxIntermediateLifetime) {
		return fmt.Errorf("intermediate certificates of %v: want %v to %v", l, issuer.MinIntermediateLifetime, issuer.MaxIntermediateLifetime)
	}
	return nil
}

func openBolt(dir string) (store.Store, error) {
	db, err := bolt.Open(dir, bolt.Options{Migrations: directory.Migrations()})
	if err != nil {
		return nil, err // not a nil *bolt.DB in a Store
	}
	return db, nil
}

// Coordinator is a control server.
type Coordinator struct {
	config Config
	first  bool

	store     store.Store // nil until opened
	issuer    *issuer.Issuer
	directory *directory.Directory
	hub       *distribute.Hub
	control   *control.Server
	admin     *api.Admin
	roots     *roots.Keeper
	programs  *policy.Programs

	closing sync.Once
	err     error
}

// New opens a coordinator's data, creating it at the first start. Nodes are not served until Run. The caller must Close it.
func New(ctx context.Context, c Config) (*Coordinator, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	co := &Coordinator{config: c}
	if err := co.open(ctx); err != nil {
		return nil, errors.Join(err, co.Close())
	}
	return co, nil
}

func (c *Coordinator) open(ctx context.Context) (err error) {
	config := c.config
	attestors, err := openAttestors(config)
	if err != nil {
		return err
	}
	if c.store, err = config.OpenStore(config.Data); err != nil {
		return err
	}
	mesh, err := directory.Ensure(ctx, c.store, directory.Plan{Domain: config.Domain, V4: config.Range}, config.Rand, config.Clock())
	if err != nil {
		return err
	}
	if err := c.openIssuer(ctx, mesh.ID); err != nil {
		return err
	}
	outage := proto.Outage{Grace: *config.Grace, Posture: min(DefaultPosture, *config.Grace)}
	c.programs = policy.NewPrograms(outage, config.Log)
	signer, err := c.issuer.AuditSigner()
	if err != nil {
		return err
	}
	c.directory, err = directory.Open(ctx, c.store, directory.Config{
		Clock: config.Clock, Rand: config.Rand, Issue: c.issue, Ages: c.programs, Demands: c.programs.Demands, Signer: signer,
	})
	if err != nil {
		return err
	}
	c.roots = roots.New(c.issuer, c.directory, config.Clock, config.Log)
	if err := c.roots.Keep(ctx); err != nil && !errors.Is(err, issuer.ErrNoIssuer) {
		return err
	}
	if err := c.writeStarter(); err != nil {
		return err
	}
	c.hub = distribute.New(distribute.Config{
		Directory: c.directory, Clock: config.Clock, Log: config.Log, Registry: config.Registry,
		Compile: c.compile, Authorities: c.issuer.Authorities, Outage: outage,
	})
	c.control = control.New(control.Config{
		Directory: c.directory, Hub: c.hub, Attestors: attestors, Issuer: c.issuer,
		Clock: config.Clock, Rand: config.Rand, Log: config.Log, Registry: config.Registry, Program: config.Program, Relay: config.Relay,
	})
	c.admin = api.New(api.Config{
		Directory: c.directory, Hub: c.hub, Issuer: c.issuer, Roots: c.roots, Store: c.store, URLs: config.URLs, Outage: outage,
		Clock: config.Clock, Rand: config.Rand, Log: config.Log,
	})
	c.measure()
	return nil
}

func (c *Coordinator) openIssuer(ctx context.Context, mesh proto.MeshID) error {
	fresh, err := directory.Fresh(ctx, c.store)
	if err != nil {
		return err
	}
	c.issuer, err = issuer.Open(issuer.Config{
		Dir: filepath.Join(c.config.Data, "pki"), Mesh: mesh, Fresh: fresh,
		NodeLifetime: c.config.NodeLifetime, IntermediateLifetime: c.config.IntermediateLifetime,
		Clock: c.config.Clock, Rand: c.config.Rand,
	})
	return err
}

// issue issues a node's certificate with the lifetime that the policy sets.
func (c *Coordinator) issue(n cert.Node, now time.Time) (cert.Node, error) {
	if l := c.programs.Lifetime(c.directory.Snapshot(), n.Tags); l > 0 {
		n.NotAfter = now.Add(l)
	}
	return c.issuer.IssueNode(n, now)
}

// compile returns the compiled form of the policy in force.
func (c *Coordinator) compile(p *directory.Policy) *compile.Program {
	return c.programs.Program(p, c.directory.Snapshot().Mesh())
}

// writeStarter writes the starter policy if there is none.
func (c *Coordinator) writeStarter() error {
	path := c.StarterPolicy()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	c.first = c.directory.Snapshot().Len() == 0
	if err := durable.WriteBytes(path, acl.Starter); err != nil {
		return fmt.Errorf("write the starter policy: %w", err)
	}
	return nil
}

// First reports whether this is the first start on this data.
func (c *Coordinator) First() bool { return c.first }

// StarterPolicy returns the path of the starter policy.
func (c *Coordinator) StarterPolicy() string { return filepath.Join(c.config.Data, StarterPolicy) }

// Mesh returns the mesh being served.
func (c *Coordinator) Mesh() proto.Mesh { return c.directory.Snapshot().Mesh() }

// Fingerprint returns the fingerprint of the mesh's root, as in join codes.
func (c *Coordinator) Fingerprint() [32]byte { return c.issuer.Fingerprint() }

// Err returns why the coordinator cannot continue, or nil.
func (c *Coordinator) Err() error { return c.directory.Err() }

// Admin returns the interface for administrators, for api.Serve or for calls within this process.
func (c *Coordinator) Admin() *api.Admin { return c.admin }

// Run serves nodes on l until ctx ends or the coordinator cannot continue; then it closes everything. Its error is the reason
// why it could not continue.
func (c *Coordinator) Run(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() {
		if err := c.control.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
			c.config.Log.Error("listener failed", "err", err)
		}
		cancel()
	})
	all.Go(func() { c.keepHouse(ctx) })
	select {
	case <-ctx.Done():
	case <-c.directory.Done():
		cancel()
	}
	failed := c.directory.Err()
	err := c.Close()
	all.Wait()
	if failed != nil && !errors.Is(failed, directory.ErrClosed) {
		return fmt.Errorf("the coordinator's state cannot be written any more: %w", failed)
	}
	return err
}

// keepHouse runs the periodic tasks.
func (c *Coordinator) keepHouse(ctx context.Context) {
	t := time.NewTicker(housekeeping)
	defer t.Stop()
	warned := make(map[string]time.Time)
	for {
		if gone, err := c.directory.Expire(ctx); err != nil && ctx.Err() == nil {
			c.config.Log.Error("cannot remove what has expired", "err", err)
		} else if len(gone) > 0 {
			c.config.Log.Info("ephemeral nodes removed", "count", len(gone))
		}
		if err := c.roots.Keep(ctx); err != nil && ctx.Err() == nil {
			c.config.Log.Error("cannot maintain the mesh's keys", "err", err)
		}
		for _, w := range c.issuer.Status().Warnings {
			if time.Since(warned[w]) > 12*time.Hour {
				warned[w] = time.Now()
				c.config.Log.Warn("the mesh's keys need attention", "what", w)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// Close shuts everything down in order of dependency. It may be called more than once.
func (c *Coordinator) Close() error {
	c.closing.Do(func() {
		if c.control != nil {
			c.err = c.control.Close()
		}
		if c.hub != nil {
			c.err = errors.Join(c.err, c.hub.Close())
		}
		if c.directory != nil {
			c.err = errors.Join(c.err, c.directory.Close())
		}
		if c.store != nil {
			c.err = errors.Join(c.err, c.store.Close())
		}
	})
	return c.err
}

func (c *Coordinator) measure() {
	gauge := func(name, help string, f func() float64) {
		c.config.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "redoubt_coordinator_" + name, Help: help}, f))
	}
	gauge("nodes", "Nodes in the directory, revoked ones included.", func() float64 { return float64(c.directory.Snapshot().Len()) })
	gauge("version", "Number of the newest change that netmaps are made of.", func() float64 { return float64(c.directory.Snapshot().Version().N) })
	gauge("lagging_nodes", "Nodes that have not acknowledged the last version that changed their netmap.", func() float64 { return float64(len(c.hub.Status().Laggards)) })
	gauge("intermediate_expires_seconds", "When the intermediate certificate ends, in Unix seconds.", func() float64 { return float64(c.issuer.Status().Intermediate.NotAfter.Unix()) })
	gauge("root_expires_seconds", "When the newest mesh root ends, in Unix seconds.", func() float64 { return float64(c.issuer.Status().Roots[0].NotAfter.Unix()) })
	gauge("roots", "Mesh roots that nodes trust: 2 while one is replaced.", func() float64 { return float64(len(c.issuer.Roots())) })
	gauge("key_warnings", "Warnings about the mesh's root and intermediate, as root list prints them.", func() float64 { return float64(len(c.issuer.Status().Warnings)) })
	gauge("policy_number", "Number of the policy in force; 0 before the first.", func() float64 {
		if p := c.directory.Snapshot().Policy(); p != nil {
			return float64(p.Number)
		}
		return 0
	})
}

// Done is closed when the coordinator cannot continue, or was closed.
func (c *Coordinator) Done() <-chan struct{} { return c.directory.Done() }
