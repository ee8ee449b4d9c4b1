package control

import (
	"encoding/binary"
	"slices"
	"sync"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// outbox is what is waiting to be sent: the newest of each kind, and nothing twice. Reports outlive a stream.
type outbox struct {
	wake chan struct{} // holds a value when there is something to send

	mu         sync.Mutex
	applied    *proto.Version
	reported   *redoubtv1.Report
	unreported bool
	wanted     *Renewal // requested but not begun; nil: none
	under      *enroll.Exchange
	proof      *redoubtv1.Up
	alive      bool

	health health
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// put changes the outbox and wakes the writer.
func (o *outbox) put(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// begin prepares for a new stream to a coordinator with the given features: what belonged to the previous stream is dropped.
func (o *outbox) begin(features []string) {
	o.put(func() {
		o.applied, o.wanted, o.under, o.proof = nil, nil, nil, nil
		o.unreported = o.reported != nil
		o.health.begin(slices.Contains(features, proto.FeaturePosture))
	})
}

// posture adds facts about the machine's health.
func (o *outbox) posture(facts []Fact, complete bool) {
	o.put(func() { o.health.add(facts, complete) })
}

// healthNow returns what is known of the machine's health.
func (o *outbox) healthNow() *redoubtv1.Posture {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.health.now()
}

func (o *outbox) ack(v proto.Version) { o.put(func() { o.applied = &v }) }

func (o *outbox) report(reach proto.Reach, port uint16) {
	endpoints := reach.Endpoints[:min(len(reach.Endpoints), proto.MaxEndpoints)]
	r := &redoubtv1.Report{
		Endpoints: wire.FromEndpoints(endpoints), ListenPort: uint32(port),
		PathKey: wire.FromPathKey(reach.PathKey), HomeRelay: uint64(reach.HomeRelay),
	}
	o.put(func() {
		if !pb.Equal(o.reported, r) {
			o.reported, o.unreported = r, true
		}
	})
}

func (o *outbox) serve(r proto.Relay) {
	report := &redoubtv1.Report{Relay: wire.FromRelay(r)}
	o.put(func() { o.reported, o.unreported = report, true })
}

func (o *outbox) renew(r Renewal) {
	o.put(func() {
		if o.under == nil {
			o.wanted = &r
		}
	})
}

func (o *outbox) prove(up *redoubtv1.Up) { o.put(func() { o.proof = up }) }

func (o *outbox) keepAlive() { o.put(func() { o.alive = true }) }

// exchange returns the renewal in progress on the wire.
func (o *outbox) exchange() *enroll.Exchange {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.under
}

func (o *outbox) renewing() bool { return o.exchange() != nil }

// renewed ends a renewal, successful or not.
func (o *outbox) renewed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.under, o.proof = nil, nil
}

// take returns the frames to send. Begin creates the exchange of a requested renewal.
func (o *outbox) take(begin func(Renewal) (*enroll.Exchange, error)) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var frames []byte
	if o.wanted != nil {
		x, err := begin(*o.wanted)
		if err != nil {
			return nil, err
		}
		o.wanted, o.under = nil, x
		frames = binary.BigEndian.AppendUint32(frames, uint32(len(x.First())))
		frames = append(frames, x.First()...)
	}
	var ups []*redoubtv1.Up
	if o.proof != nil {
		ups, o.proof = append(ups, o.proof), nil
	}
	if o.applied != nil {
		v := wire.FromVersion(*o.applied)
		ups, o.applied = append(ups, &redoubtv1.Up{Message: &redoubtv1.Up_Applied{Applied: &redoubtv1.Applied{Version: v}}}), nil
	}
	if o.unreported {
		ups, o.unreported = append(ups, &redoubtv1.Up{Message: &redoubtv1.Up_Report{Report: o.reported}}), false
	}
	if p := o.health.take(); p != nil {
		ups = append(ups, &redoubtv1.Up{Message: &redoubtv1.Up_Posture{Posture: p}})
	}
	if o.alive && len(ups) == 0 && len(frames) == 0 {
		ups = append(ups, &redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
	}
	o.alive = false
	for _, up := range ups {
		var err error
		if frames, err = wire.AppendFrame(frames, up); err != nil {
			return nil, err
		}
	}
	return slices.Clip(frames), nil
}
