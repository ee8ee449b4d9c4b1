package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// fleetNodes names the environment variable with the number of nodes in TestFleet. `make bench` runs it with ten thousand.
const fleetNodes = "REDOUBT_FLEET_NODES"

// inOneProcess is how many nodes this process can run beside the coordinator: each needs a file descriptor at both ends.
const inOneProcess = 4000

// TestFleet makes nodes join, leave, come back all at once without waiting for each other, and receive policies, over real
// control streams; some nodes hardly read and some not at all. It checks each time that every node ends up with exactly what
// the pure function of the directory gives it, and with the peers of the plan.
func TestFleet(t *testing.T) {
	size := usual
	if text := os.Getenv(fleetNodes); text != "" {
		var err error
		if size, err = strconv.Atoi(text); err != nil || size < 100 {
			t.Fatalf("%s=%s: want a number from 100", fleetNodes, text)
		}
	}
	r := newRig(t, plan{nodes: size, group: 21})
	r.apply(1, -1)
	for g, n := range r.groups() {
		r.expect(g, n)
	}
	r.join()
	r.check("all joined", nil)
	r.apply(2, 1)
	r.check("rules changed", nil)

	r.all(order{Do: "renew"}) // most learn of it only once they are back
	for round := range 2 {
		r.all(order{Do: "drop"})
		r.apply(3+round, 0) // while nobody is connected
		r.all(order{Do: "attach"})
		r.check("all back at once", nil)
	}

	first := r.ids
	for _, i := range []int{0, 30, 31, size / 2, size - 1} { // one and two of a group, and one of the last
		r.leave(first[i])
	}
	r.check("some left", nil)
	for _, g := range []int{0, 0, 1, 2} {
		r.expect(g, 1)
	}
	r.join()
	r.check("others joined", nil)
	r.slowReaders(10)
}

// slowReaders makes every nth node read only a little of each change, and the next one nothing. It checks that all others
// receive each change, and that these receive the last one as soon as they read.
func (r *rig) slowReaders(every int) {
	r.t.Helper()
	var slow, stuck []proto.NodeID
	for i, id := range r.ids {
		switch i % every {
		case 0:
			slow = append(slow, id)
		case 1:
			stuck = append(stuck, id)
		}
	}
	behind := map[proto.NodeID]bool{}
	for _, id := range slices.Concat(slow, stuck) {
		behind[id] = true
	}
	r.net.narrow.Store(true)
	r.all(order{Do: "slow", Nodes: slices.Concat(slow, stuck)})
	r.long = true
	for port := range 8 {
		r.all(order{Do: "give", Nodes: slow, Bytes: 300})
		r.apply(100+2*port, port%2)
		r.check("some do not read", behind)
	}
	if l := r.laggards(time.Millisecond); len(l) < len(stuck) {
		r.t.Errorf("%d nodes do not read, and %d lag", len(stuck), len(l))
	}
	r.all(order{Do: "free"})
	r.check("they read again", nil)
}

type rig struct {
	plan
	t           *testing.T
	co          *coordinator.Coordinator
	net         *listener
	hands       []hands
	codes       map[int]string // by group
	coming      []int          // groups of the nodes that will join next
	ids         []proto.NodeID // in the order in which they joined
	group       map[proto.NodeID]int
	odd, common int // the group with a different port, and the port of the others
	long        bool
}

func newRig(t *testing.T, p plan) *rig {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	co, err := coordinator.New(t.Context(), coordinator.Config{Data: t.TempDir(), URLs: []string{"https://" + l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{plan: p, t: t, co: co, net: &listener{Listener: l}, hands: []hands{&own{}}, codes: map[int]string{}, group: map[proto.NodeID]int{}}
	if p.nodes > inOneProcess {
		r.hands = []hands{hire(t), hire(t)}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- co.Run(ctx, r.net) }()
	t.Cleanup(func() {
		for _, h := range r.hands {
			if err := h.close(); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// listener limits, while narrow is set, how much the system buffers for nodes that do not read, so that the coordinator has
// to wait for them.
type listener struct {
	net.Listener
	narrow atomic.Bool
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil && l.narrow.Load() {
		err = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// expect adds nodes of a group to the next join.
func (r *rig) expect(group, n int) {
	r.t.Helper()
	if r.codes[group] == "" {
		a, err := r.co.Admin().CreateToken(r.t.Context(), &redoubtv1.CreateTokenRequest{Tags: []string{fmt.Sprintf("tag:g%d", group)}, Reusable: true})
		if err != nil {
			r.t.Fatal(err)
		}
		r.codes[group] = a.GetCode()
	}
	r.coming = append(r.coming, slices.Repeat([]int{group}, n)...)
}

func (r *rig) join() {
	r.t.Helper()
	groups := make([][]int, len(r.hands))
	for i, g := range r.coming {
		groups[i%len(r.hands)] = append(groups[i%len(r.hands)], g)
	}
	r.coming = nil
	for i, a := range r.each(func(i int) order {
		q := order{Do: "join"}
		for _, g := range groups[i] {
			q.Codes = append(q.Codes, r.codes[g])
		}
		return q
	}) {
		for n, id := range a.IDs {
			r.ids = append(r.ids, id)
			r.group[id] = groups[i][n]
		}
	}
}

func (r *rig) leave(id proto.NodeID) {
	r.t.Helper()
	r.all(order{Do: "leave", Nodes: []proto.NodeID{id}})
	if _, err := r.co.Admin().DeleteNode(r.t.Context(), &redoubtv1.DeleteNodeRequest{Node: id.String()}); err != nil {
		r.t.Fatal(err)
	}
	r.ids = slices.DeleteFunc(slices.Clone(r.ids), func(x proto.NodeID) bool { return x == id })
	delete(r.group, id)
}

func (r *rig) all(q order) []report { return r.each(func(int) order { return q }) }

// each gives all hands an order, all at once.
func (r *rig) each(what func(i int) order) []report {
	r.t.Helper()
	out := make([]report, len(r.hands))
	var all sync.WaitGroup
	for i, h := range r.hands {
		all.Go(func() { out[i] = h.do(what(i)) })
	}
	all.Wait()
	for _, a := range out {
		if a.Err != "" {
			r.t.Fatal(a.Err)
		}
	}
	return out
}

func (r *rig) apply(port, odd int) {
	r.t.Helper()
	r.common, r.odd = port, odd
	source := r.policy(port, odd)
	if r.long { // a change of some kilobytes, as far as the size limit of policies allows
		var more strings.Builder
		for i := range min(200, 60_000/strings.Count(source, "]},\n")) {
			fmt.Fprintf(&more, `, "udp:%d"`, 2*i+port)
		}
		source = strings.ReplaceAll(source, "]},\n", more.String()+"]},\n")
	}
	if _, err := r.co.Admin().ApplyPolicy(r.t.Context(), &redoubtv1.ApplyPolicyRequest{Source: source}); err != nil {
		r.t.Fatal(err)
	}
}

// laggards returns the nodes that still do not enforce what they should after a while.
func (r *rig) laggards(wait time.Duration) []string {
	r.t.Helper()
	st, err := r.co.Admin().PolicyStatus(r.t.Context(), &redoubtv1.PolicyStatusRequest{WaitMs: uint64(wait / time.Millisecond)})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, l := range st.GetLaggards() {
		out = append(out, l.GetId())
	}
	return out
}

// patience is how long nodes may take, on any machine.
const patience = 3 * time.Minute

// check waits until the coordinator considers every node current, except those that do not read, and compares what they have.
func (r *rig) check(when string, behind map[proto.NodeID]bool) {
	r.t.Helper()
	wait := patience
	if len(behind) > 0 {
		wait = 50 * time.Millisecond // these never become current
	}
	for begin := time.Now(); ; {
		late := slices.DeleteFunc(r.laggards(wait), func(id string) bool {
			x, err := proto.ParseNodeID(id)
			return err == nil && behind[x]
		})
		if len(late) == 0 {
			break
		}
		if time.Since(begin) > patience {
			r.t.Fatalf("%s: %d nodes lag: %.200v", when, len(late), late)
		}
	}
	r.plans(when)
	want := r.snapshot()
	for _, a := range r.all(order{Do: "sums"}) {
		for _, s := range a.Sums {
			if w, ok := want[s.ID]; !behind[s.ID] && (!ok || s.Sum != w) {
				r.t.Errorf("%s: node %v of group %d has not what the directory says", when, s.ID, r.group[s.ID])
			}
			delete(want, s.ID)
		}
	}
	if len(want) > 0 {
		r.t.Errorf("%s: %d nodes of the directory are nowhere", when, len(want))
	}
}

// snapshot returns what each node should know according to the directory alone, computing each netmap separately.
func (r *rig) snapshot() map[proto.NodeID][sha256.Size]byte {
	source := r.co.Admin().Hub.Source()
	ids := slices.Collect(source.Snapshot.All())
	sums := make([][sha256.Size]byte, len(ids))
	var all sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		all.Go(func() {
			for i := w; i < len(ids); i += workers {
				sums[i] = sumOf(distribute.Netmap(source, ids[i], []string{proto.FeatureConditions, proto.FeatureDeny, proto.FeatureRules}))
			}
		})
	}
	all.Wait()
	out := make(map[proto.NodeID][sha256.Size]byte, len(ids))
	for i, id := range ids {
		out[id] = sums[i]
	}
	return out
}

// plans compares the directory with the plan: peers are the members of the group, and the rule names its port.
func (r *rig) plans(when string) {
	r.t.Helper()
	source := r.co.Admin().Hub.Source()
	members := map[int][]proto.NodeID{}
	for _, id := range r.ids {
		members[r.group[id]] = append(members[r.group[id]], id)
	}
	for g, list := range members {
		slices.Sort(list)
		id := list[len(list)/2]
		nm := distribute.Netmap(source, id, []string{proto.FeatureRules})
		var got []proto.NodeID
		for _, p := range nm.Peers {
			got = append(got, p.ID)
		}
		want := slices.DeleteFunc(slices.Clone(list), func(x proto.NodeID) bool { return x == id })
		if !slices.Equal(got, want) {
			r.t.Errorf("%s: a node of group %d has peers %v, should have %v", when, g, got, want)
		}
		at := r.common
		if g == r.odd {
			at++
		}
		var ports []string
		for _, rule := range nm.Rules {
			for _, s := range rule.Services {
				if s.Proto == proto.ProtoTCP {
					ports = append(ports, fmt.Sprint(s.First))
				}
			}
		}
		if text := strings.Join(ports, " "); text != fmt.Sprintf("%d %d", at, at) {
			r.t.Errorf("%s: a node of group %d has rules about ports %s, should have %d each way", when, g, text, at)
		}
	}
}
