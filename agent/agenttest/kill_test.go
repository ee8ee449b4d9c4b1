package agenttest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
)

// fuse counts steps once it is armed, and burns at one of them.
type fuse struct {
	at int

	mu     sync.Mutex
	armed  bool
	seen   int
	burned chan struct{} // closed when it burns
	step   string
}

func newFuse(at int) *fuse { return &fuse{at: at, burned: make(chan struct{})} }

func (f *fuse) Arm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = true
}

func (f *fuse) Disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
}

// count counts a step, and reports whether the fuse burns at it.
func (f *fuse) count(step string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed {
		return false
	}
	f.seen++
	if f.seen != f.at+1 {
		return false
	}
	f.step = step
	close(f.burned)
	return true
}

// Burned reports whether the fuse has burned.
func (f *fuse) Burned() bool {
	select {
	case <-f.burned:
		return true
	default:
		return false
	}
}

// mortal makes the next agents of a machine die just before one of the steps at which they write.
func mortal(n *node, f *fuse) {
	n.configure = func(c *agent.Config) {
		c.Edges.Disk = func(step string) error {
			if f.count(step) {
				n.kill()
			}
			if n.dead.Load() {
				return errDead
			}
			return nil
		}
	}
}

// mortalStore is a coordinator's store. The coordinator dies at one of its transactions: before it, or as soon as it is on disk.
type mortalStore struct {
	store.Store
	c     *center
	f     *fuse
	after bool
}

// Txn implements store.Store.
func (s mortalStore) Txn(ctx context.Context, compare []store.Cmp, ops []store.Op) (uint64, error) {
	dies := s.f.count("transaction")
	if dies && s.after {
		if _, err := s.Store.Txn(ctx, compare, ops); err != nil {
			return 0, err
		}
	}
	if dies {
		s.c.kill()
	}
	if s.c.dead.Load() {
		return 0, store.ErrFailed
	}
	return s.Store.Txn(ctx, compare, ops)
}

// mortalCenter makes the next coordinators die at a transaction.
func mortalCenter(c *center, f *fuse, after bool) {
	c.configure = func(config *coordinator.Config) {
		config.OpenStore = func(dir string) (store.Store, error) {
			db, err := bolt.Open(dir, bolt.Options{Migrations: directory.Migrations()})
			if err != nil {
				return nil, err
			}
			return mortalStore{db, c, f, after}, nil
		}
	}
}

// untilItLives runs f in a bubble for each step in turn, until there is none left at which something could die. There must be
// at least that many steps.
func untilItLives(t *testing.T, least int, f func(m *mesh, fuse *fuse)) {
	t.Helper()
	for at, burned := 0, true; burned; at++ {
		inBubble(t, func(m *mesh) {
			fuse := newFuse(at)
			f(m, fuse)
			burned = fuse.Burned()
			if m.Failed() {
				m.Fatalf("killed at step %d: %s", at, fuse.step)
			}
		})
		if t.Failed() {
			return
		}
		if !burned && at < least {
			t.Fatalf("%d steps, not %d", at, least)
		}
	}
}

func TestAgentKilledAtEachWrite(t *testing.T) {
	t.Parallel()
	t.Run("enrolment", func(t *testing.T) {
		t.Parallel()
		untilItLives(t, 30, func(m *mesh, fuse *fuse) {
			n := m.Machine("laptop")
			n.stop()
			mortal(n, fuse)
			n.start()
			fuse.Arm()
			code := m.Code(user("ann@example.com"))
			_, err := n.TryUp(code, time.Minute)
			m.Await(10*time.Minute, "it runs, or is dead", func() bool { return fuse.Burned() || len(m.laggards(time.Second)) == 0 })
			if fuse.Burned() {
				n.bury()
				n.Up(code)
			} else if err != nil {
				m.Fatal(err)
			}
			m.Agree()
			enrolledOnce(m, n)
			n.restart()
			m.Agree()
			enrolledOnce(m, n)
		})
	})
	t.Run("renewal", func(t *testing.T) {
		t.Parallel()
		untilItLives(t, 10, func(m *mesh, fuse *fuse) {
			n := m.Machine("laptop")
			n.stop()
			mortal(n, fuse)
			n.start()
			n.Up(m.Code(user("ann@example.com")))
			m.Agree()
			before := n.Status().GetNode()
			time.Sleep(26 * time.Minute) // it is renewed a minute later at the earliest
			fuse.Arm()
			select {
			case <-fuse.burned:
			case <-time.After(8 * time.Minute):
				fuse.Disarm()
			}
			if fuse.Burned() {
				n.bury()
			}
			time.Sleep(40 * time.Minute)
			m.Agree()
			enrolledOnce(m, n)
			after := n.Status().GetNode()
			if left := time.Until(time.Unix(after.GetCertificateExpires(), 0)); left < 15*time.Minute {
				m.Errorf("the certificate is good for %v more", left)
			}
			if after.GetId() != before.GetId() || after.GetAddresses()[0] != before.GetAddresses()[0] {
				m.Errorf("it was %v and is %v", before, after)
			}
		})
	})
}

func TestCoordinatorKilledAtEachTransaction(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]bool{"before": false, "after": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			untilItLives(t, 4, func(m *mesh, fuse *fuse) {
				m.center.stop()
				mortalCenter(m.center, fuse, after)
				m.center.start()
				code := m.Code(user("ann@example.com"))
				n := m.Machine("laptop")
				fuse.Arm()
				var undertaker sync.WaitGroup
				over := make(chan struct{})
				undertaker.Go(func() {
					select {
					case <-fuse.burned:
						time.Sleep(time.Minute)
						if err := m.center.bury(); err != nil {
							m.Error(err)
						}
					case <-over:
					}
				})
				if _, err := n.TryUp(code, 10*time.Minute); err != nil {
					m.Fatal(err)
				}
				first := n.Status()
				time.Sleep(2 * time.Hour) // three or four renewals
				close(over)
				undertaker.Wait()
				m.Agree()
				enrolledOnce(m, n)
				if now := n.Status(); now.GetNode().GetId() != first.GetNode().GetId() || version(m.T, now.GetPolicyVersion()).Less(version(m.T, first.GetPolicyVersion())) {
					m.Errorf("it was %v and is %v", first, now)
				}
				if p := n.Status().GetProblems(); len(p) > 0 {
					m.Errorf("problems: %q", p)
				}
			})
		})
	}
}

// TestCoordinatorKilledInItsFirstStart checks that the next start continues where the first one ended, or starts over.
func TestCoordinatorKilledInItsFirstStart(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]bool{"before": false, "after": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			untilItLives(t, 2, func(m *mesh, fuse *fuse) {
				m.center.stop()
				m.center.dir = m.TempDir()
				mortalCenter(m.center, fuse, after)
				fuse.Arm()
				err := m.center.tryStart()
				fuse.Disarm()
				if fuse.Burned() {
					if err == nil {
						m.Error("a coordinator starts without its store")
					}
					if err := m.center.bury(); err != nil {
						m.Fatal(err)
					}
				} else if err != nil {
					m.Fatal(err)
				}
				a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
				b.Listen(22)
				m.Policy(open)
				a.Reaches(b, 22)
			})
		})
	}
}
