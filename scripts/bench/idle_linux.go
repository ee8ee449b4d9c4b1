package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// idle measures what peers cost an agent that has no traffic with them: it starts with a netmap on its disk and no
// coordinator in reach. The time is from the start of the process until it tells systemd that the stored netmap is in force.
func idle(ctx context.Context, bin string, rounds, peers int) (err error) {
	m, err := mesh.New(bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	fmt.Println("| peers in the netmap | start | ready after, ms | of that for the peers | CPU-ms | resident memory, MB | peak |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- |")
	few, err := prepared(m, 1)
	if err != nil {
		return err
	}
	many, err := prepared(m, peers)
	if err != nil {
		return err
	}
	var alone float64
	for _, s := range []starts{{few, 1, false}, {many, peers, true}, {many, peers, false}} {
		cost, err := s.measure(ctx, rounds)
		if err != nil {
			return err
		}
		if s.peers == 1 {
			alone = cost.up
		}
		kind := "after a clean stop"
		if s.first {
			kind = "the first, or after a crash"
		}
		fmt.Printf("| %d | %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", s.peers, kind, cost.up, cost.up-alone, cost.cpu, cost.now, cost.peak)
	}
	return nil
}

// starts is a series of starts of one agent.
type starts struct {
	node  *mesh.Node
	peers int
	first bool // no previous start has recorded which signatures are valid
}

// cost is in milliseconds and megabytes, the medians of several starts.
type cost struct{ up, cpu, now, peak float64 }

func (s starts) measure(ctx context.Context, rounds int) (cost, error) {
	var all []cost
	if !s.first {
		rounds++ // the first start is not of the kind measured
	}
	for i := range rounds {
		if s.first {
			if err := os.Remove(filepath.Join(s.node.State(), "checked")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return cost{}, err
			}
		}
		took, spent, err := start(s.node)
		if err != nil {
			return cost{}, err
		}
		// Garbage left over from loading is collected meanwhile, or stays.
		time.Sleep(3 * time.Second)
		pid := s.node.Agent.PID()
		c := cost{millis(took), spent * 1000, rss(pid), peakRSS([]int{pid})}
		if err := errors.Join(runs(ctx, s.node, s.peers), s.node.Agent.Stop(ctx)); err != nil {
			return cost{}, err
		}
		if s.first || i > 0 {
			all = append(all, c)
		}
	}
	return cost{
		median(all, func(c cost) float64 { return c.up }), median(all, func(c cost) float64 { return c.cpu }),
		median(all, func(c cost) float64 { return c.now }), median(all, func(c cost) float64 { return c.peak }),
	}, nil
}

// prepared returns a host with the state directory of an agent that has been a member for a while.
func prepared(m *mesh.Mesh, peers int) (*mesh.Node, error) {
	h, err := m.World.AddHost(fmt.Sprintf("with%d", peers), m.LAN)
	if err != nil {
		return nil, err
	}
	node := m.NodeOn(h)
	begun := time.Now().Add(-time.Minute)
	net := identitytest.New(begun)
	self := net.Machine(1, "self")
	list := make([]proto.Peer, peers)
	for i := range list {
		p := net.Machine(uint16(i+2), fmt.Sprintf("peer-%d", i))
		list[i] = proto.Peer{
			ID: p.ID, Certificate: net.Issue(p, 1, begun, time.Hour),
			Reach: proto.Reach{Endpoints: []proto.Endpoint{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 41641), Kind: proto.EndpointInterface}}},
		}
	}
	dir, err := state.Open(node.State(), time.Now())
	if err != nil {
		return nil, err
	}
	secret, err := key.NewToken(rand.Reader)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	err = errors.Join(
		dir.SaveDevice(self.Device), dir.SaveNodes([]key.NodePrivate{self.Node}), dir.SaveIdentity(net.Record(self, 1, begun, time.Hour)),
		dir.SaveJoin(state.Join{URLs: []string{m.URL()}, Secret: secret}), dir.SaveWanted(state.Wanted{Up: true, Hostname: "self"}),
		dir.SaveFloors(state.Floors{MeshTime: begun, LastContact: begun}), dir.SaveNetmap(net.Netmap(self, 1, time.Hour, list...)),
		dir.Close(),
	)
	return node, err
}

// start starts the agent and waits for readiness as systemd does. It returns how long that took, and how much CPU time.
func start(node *mesh.Node) (took time.Duration, cpu float64, err error) {
	path := filepath.Join(node.Host.RunDir, "notify")
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		_ = sock.Close()
		_ = os.Remove(path)
	}()
	begin := time.Now()
	p, err := node.Launch(lab.Command{Env: []string{"NOTIFY_SOCKET=" + path}})
	if err != nil {
		return 0, 0, err
	}
	if err := sock.SetReadDeadline(begin.Add(time.Minute)); err != nil {
		return 0, 0, err
	}
	buf := make([]byte, 1000)
	for {
		n, err := sock.Read(buf)
		if err != nil {
			return 0, 0, fmt.Errorf("the agent is not ready: %w\n%s", err, p.Output())
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			break
		}
	}
	return time.Since(begin), cpuSeconds([]int{p.PID()}), nil
}

// runs checks that the agent is up with all peers. Answering makes the agent write a long list, which also takes memory.
func runs(ctx context.Context, node *mesh.Node, peers int) error {
	st, err := node.Status(ctx)
	if err == nil && (st.State != "running" || len(st.Peers) != peers) {
		err = fmt.Errorf("the agent is %s, with %d peers: %v\n%s", st.State, len(st.Peers), st.Problems, node.Agent.Output())
	}
	return err
}
