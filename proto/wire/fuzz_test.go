package wire_test

import (
	"bytes"
	"errors"
	"testing"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// few returns a small netmap with something of every kind.
func few() *proto.Netmap {
	nm := large()
	nm.Peers = nm.Peers[:2]
	for i := range nm.Peers {
		nm.Peers[i].Certificate = []byte{1, 2, 3}
	}
	nm.Barred = nm.Barred[:2]
	nm.Sets = nm.Sets[:2]
	for i := range nm.Sets {
		nm.Sets[i].Members = nm.Sets[i].Members[:3]
	}
	r := &nm.Rules[0]
	r.Peers.Sets, r.Peers.Prefixes, r.Local, r.Services = r.Peers.Sets[:1], r.Peers.Prefixes[:1], r.Local[:1], r.Services[:1]
	nm.Requires, nm.Authorities = proto.Features(), [][]byte{{9}}
	return nm
}

func FuzzReadFrame(f *testing.F) {
	for _, m := range ups(f) {
		b, err := wire.AppendFrame(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := wire.ReadFrame(r, nil, wire.MaxFrameUnauthenticated)
		if err != nil {
			return
		}
		if len(got) == 0 || len(got) > wire.MaxFrameUnauthenticated || !bytes.Equal(got, b[4:4+len(got)]) || r.Len() != len(b)-4-len(got) {
			t.Fatalf("read %x", got)
		}
	})
}

func FuzzDecodeUp(f *testing.F) {
	for _, m := range ups(f) {
		f.Add(encode(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.DecodeUp(b)
		if (err == nil) != (m != nil) {
			t.Fatalf("got %v, %v", m, err)
		}
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrFrame) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, err := wire.DecodeUp(encode(t, m))
		if err != nil || !pb.Equal(m, again) {
			t.Fatalf("%v is read, and then %v, %v", m, again, err)
		}
		r, err := wire.ToReach(m.GetReport(), prototest.Mesh())
		if len(r.Endpoints) > proto.MaxEndpoints || (err != nil && r.Endpoints != nil) {
			t.Fatalf("endpoints %v, %v", r.Endpoints, err)
		}
	})
}

func FuzzDecodeDown(f *testing.F) {
	for _, m := range downs(f) {
		f.Add(encode(f, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.DecodeDown(b)
		if (err == nil) != (m != nil) {
			t.Fatalf("got %v, %v", m, err)
		}
		if err != nil {
			if !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrFrame) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, err := wire.DecodeDown(encode(t, m))
		if err != nil || !pb.Equal(m, again) {
			t.Fatalf("%v is read, and then %v, %v", m, again, err)
		}
	})
}

// FuzzNetmap reads two parts of a netmap: the result must be valid, and survive a round trip.
func FuzzNetmap(f *testing.F) {
	parts := wire.FromNetmap(few())
	whole := encode(f, parts[0])
	parts[0].More = true
	f.Add(whole, []byte{})
	f.Add(encode(f, parts[0]), encode(f, &redoubtv1.NetmapPart{Version: parts[0].Version}))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var a wire.NetmapAssembler
		for _, b := range [][]byte{first, second} {
			var p redoubtv1.NetmapPart
			if pb.Unmarshal(b, &p) != nil {
				return
			}
			done, nm, err := a.Add(&p)
			if err != nil {
				if !errors.Is(err, wire.ErrMalformed) || done || nm != nil || a.Busy() {
					t.Fatalf("got %v, %v, %v", done, nm, err)
				}
				return
			}
			if !done {
				continue
			}
			if err := nm.Validate(); err != nil {
				t.Fatal(err)
			}
			if d := diff(nm, assembleNetmap(t, wire.FromNetmap(nm))); d != "" {
				t.Fatal(d)
			}
			return
		}
	})
}

// FuzzDelta reads a delta and applies it: the result must be a valid netmap, or an error.
func FuzzDelta(f *testing.F) {
	nm := few()
	empty := &proto.Netmap{Version: v(1), Mesh: nm.Mesh, Self: nm.Self}
	next := *nm
	next.Version, next.Peers, next.Rules = v(9), nm.Peers[:1], nil
	next.Sets = []proto.Set{{Name: nm.Sets[0].Name, Members: nm.Sets[0].Members[1:]}}
	for _, d := range []*proto.Delta{proto.Diff(nm, &next), proto.Diff(empty, nm)} {
		f.Add(encode(f, wire.FromDelta(d)[0]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p redoubtv1.DeltaPart
		if pb.Unmarshal(b, &p) != nil {
			return
		}
		var a wire.DeltaAssembler
		done, d, err := a.Add(&p)
		if err != nil && !errors.Is(err, wire.ErrMalformed) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if !done {
			return
		}
		for _, base := range []*proto.Netmap{nm, empty} {
			got, err := base.Apply(d)
			if err != nil {
				continue
			}
			if err := got.Validate(); err != nil {
				t.Fatal(err)
			}
			if s := diff(d, assembleDelta(t, wire.FromDelta(d))); s != "" {
				t.Fatal(s)
			}
		}
	})
}

func FuzzNetmapFile(f *testing.F) {
	b, err := wire.EncodeNetmapFile(few())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		nm, err := wire.DecodeNetmapFile(b)
		if err != nil {
			return
		}
		if err := nm.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}
