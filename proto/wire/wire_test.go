package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protowire"
	pb "google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// compare treats absent and empty lists as equal.
var compare = []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}, netip.Addr{})}

func diff(a, b any) string { return cmp.Diff(a, b, compare...) }

func v(n uint64) proto.Version { return proto.Version{Epoch: 1, N: n} }

// through encodes and decodes a message.
func through[M pb.Message](t rapid.TB, m, empty M) M {
	b, err := pb.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > wire.MaxPart {
		t.Fatalf("a part of %d bytes", len(b))
	}
	if err := pb.Unmarshal(b, empty); err != nil {
		t.Fatal(err)
	}
	return empty
}

func assembleNetmap(t rapid.TB, parts []*redoubtv1.NetmapPart) *proto.Netmap {
	var a wire.NetmapAssembler
	for i, p := range parts {
		done, nm, err := a.Add(through(t, p, &redoubtv1.NetmapPart{}))
		if err != nil {
			t.Fatal(err)
		}
		if last := i == len(parts)-1; done != last || done != (nm != nil) || a.Busy() == last {
			t.Fatalf("part %d of %d: done %v", i, len(parts), done)
		}
		if done {
			return nm
		}
	}
	t.Fatal("no last part")
	return nil
}

func assembleDelta(t rapid.TB, parts []*redoubtv1.DeltaPart) *proto.Delta {
	var a wire.DeltaAssembler
	for i, p := range parts {
		done, d, err := a.Add(through(t, p, &redoubtv1.DeltaPart{}))
		if err != nil {
			t.Fatal(err)
		}
		if last := i == len(parts)-1; done != last || done != (d != nil) || a.Busy() == last {
			t.Fatalf("part %d of %d: done %v", i, len(parts), done)
		}
		if done {
			return d
		}
	}
	t.Fatal("no last part")
	return nil
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := prototest.Netmap(v(3)).Draw(t, "a")
		if d := diff(a, assembleNetmap(t, wire.FromNetmap(a))); d != "" {
			t.Fatal(d)
		}
		delta := proto.Diff(a, prototest.Netmap(v(9)).Draw(t, "b"))
		if d := diff(delta, assembleDelta(t, wire.FromDelta(delta))); d != "" {
			t.Fatal(d)
		}
		file, err := wire.EncodeNetmapFile(a)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeNetmapFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := diff(a, got); d != "" {
			t.Fatal(d)
		}
	})
}

// large returns a netmap of many parts, with sets that span several of them.
func large() *proto.Netmap {
	nm := &proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self}
	for i := range 400 {
		nm.Peers = append(nm.Peers, &proto.Peer{ID: proto.NodeID(i + 100), Certificate: bytes.Repeat([]byte{byte(i)}, 5000)})
	}
	for i := range 50_000 {
		nm.Barred = append(nm.Barred, proto.Barred{ID: proto.NodeID(i + 1000), Sequence: 1 << 50})
	}
	for _, name := range []string{"group:a", "group:b", "group:c"} {
		s := proto.Set{Name: name}
		for i := range 40_000 {
			s.Members = append(s.Members, proto.NodeID(i+1))
		}
		nm.Sets = append(nm.Sets, s)
	}
	r := proto.Rule{Key: "grants[0]/in", Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.In}
	for i := range proto.MaxRulePrefixes {
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 8), byte(i), 15: 1}), 128)
		r.Peers.Prefixes = append(r.Peers.Prefixes, p)
		r.Local = append(r.Local, p)
	}
	for range proto.MaxServices {
		r.Services = append(r.Services, proto.Service{Proto: proto.ProtoSCTP, First: 65534, Last: 65535})
	}
	for range proto.MaxRuleSets {
		r.Peers.Sets = append(r.Peers.Sets, "group:a")
	}
	nm.Rules = []proto.Rule{r}
	return nm
}

// TestServices checks that consecutive whole protocols are sent as one element, and that no range can grow a small rule into a
// large one.
func TestServices(t *testing.T) {
	nm := &proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: prototest.Self}
	r := proto.Rule{Key: "deny[0]/in", Origin: proto.Origin{Path: "deny[0]", Line: 1}, Direction: proto.In, Action: proto.Deny}
	for p := range 256 {
		r.Services = append(r.Services, proto.Service{Proto: uint8(p), Last: 65535})
	}
	nm.Rules = []proto.Rule{r}
	parts := wire.FromNetmap(nm)
	if n := pb.Size(parts[0].Rules[0]); n > 64 {
		t.Errorf("a rule about everything takes %d bytes", n)
	}
	if got := assembleNetmap(t, parts); !reflect.DeepEqual(nm, got) {
		t.Errorf("another netmap: %+v", proto.Diff(nm, got))
	}
	for _, services := range [][]*redoubtv1.Service{
		{{Protocol: 0, Last: 65535, LastProtocol: 256}},
		{{Protocol: 6, Last: 65535, LastProtocol: 6}},
		{{Protocol: 6, Last: 65535, LastProtocol: 5}},
		{{Protocol: 6, First: 1, Last: 65535, LastProtocol: 17}},
		{{Protocol: 0, Last: 65535, LastProtocol: 255}, {Protocol: 0, Last: 65535, LastProtocol: 255}},
		{{Protocol: 9, Last: 65535}, {Protocol: 9, Last: 65535, LastProtocol: 10}},
	} {
		parts := wire.FromNetmap(nm)
		parts[0].Rules[0].Services = services
		var a wire.NetmapAssembler
		if _, _, err := a.Add(parts[0]); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%v: %v", services, err)
		}
	}
}

func TestManyParts(t *testing.T) {
	nm := large()
	if err := nm.Validate(); err != nil {
		t.Fatal(err)
	}
	parts := wire.FromNetmap(nm)
	if len(parts) < 6 {
		t.Errorf("%d parts", len(parts))
	}
	if got := assembleNetmap(t, parts); !reflect.DeepEqual(nm, got) {
		t.Errorf("another netmap: %+v", proto.Diff(nm, got))
	}
	empty := &proto.Netmap{Version: v(1), Mesh: nm.Mesh, Self: nm.Self}
	for _, delta := range []*proto.Delta{proto.Diff(empty, nm), changes(nm)} {
		if !reflect.DeepEqual(delta, assembleDelta(t, wire.FromDelta(delta))) {
			t.Errorf("another delta to %s", delta.To)
		}
	}
}

// changes returns a delta with set changes that span several parts.
func changes(nm *proto.Netmap) *proto.Delta {
	d := &proto.Delta{From: v(3), To: v(4)}
	for _, s := range nm.Sets {
		d.ChangeSets = append(d.ChangeSets, proto.SetChange{Name: s.Name, Add: s.Members[:20_000], Remove: s.Members[20_000:]})
	}
	return d
}

func parts(t *testing.T) []*redoubtv1.NetmapPart {
	t.Helper()
	nm := large()
	ps := wire.FromNetmap(nm)
	for i, p := range ps {
		ps[i] = through(t, p, &redoubtv1.NetmapPart{})
	}
	return ps
}

// unknown is an encoded field that no message defines.
var unknown = protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1)

func TestNetmapPartsRefused(t *testing.T) {
	for name, damage := range map[string]func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart{
		"no head":              func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[0].Head = nil; return ps },
		"begins in the middle": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { return ps[1:] },
		"two heads":            func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[1].Head = ps[0].Head; return ps },
		"another version":      func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[2].Version.N++; return ps },
		"no version":           func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[0].Version = nil; return ps },
		"a part twice":         func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[2] = ps[1]; return ps },
		"parts exchanged":      func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { ps[1], ps[2] = ps[2], ps[1]; return ps },
		"unknown in the part": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in the head": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Head.ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in the mesh": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Head.Mesh.ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in the version": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Version.ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a peer": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Peers[0].ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a set": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).sets[0].ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a rule": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a selector": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Peers.ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a service": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Services[0].ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"unknown in a prefix": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Local[0].ProtoReflect().SetUnknown(unknown)
			return ps
		},
		"rule of no direction": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { last(ps).rule.Direction = 3; return ps },
		"protocol of 9 bits": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Services[0].Protocol = 256
			return ps
		},
		"port of 17 bits": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Services[0].Last = 65536
			return ps
		},
		"prefix of five bytes": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			last(ps).rule.Local[0].Address = make([]byte, 5)
			return ps
		},
		"prefix of 129 bits": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { last(ps).rule.Local[0].Bits = 129; return ps },
		"prefix not masked":  func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart { last(ps).rule.Local[0].Bits = 3; return ps },
		"huge grace": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Head.OutageGraceSeconds = 1 << 63
			return ps
		},
		"overlay endpoint": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Peers[0].Endpoints = endpoint(100, 64, 0, 1)
			return ps
		},
		"loopback endpoint": func(ps []*redoubtv1.NetmapPart) []*redoubtv1.NetmapPart {
			ps[0].Peers[0].Endpoints = endpoint(127, 0, 0, 1)
			return ps
		},
	} {
		t.Run(name, func(t *testing.T) {
			var a wire.NetmapAssembler
			for _, p := range damage(parts(t)) {
				done, nm, err := a.Add(p)
				if done || nm != nil {
					t.Fatal("taken")
				}
				if err != nil {
					if !errors.Is(err, wire.ErrMalformed) {
						t.Errorf("an error of no kind: %v", err)
					}
					if a.Busy() {
						t.Error("goes on after an error")
					}
					return
				}
			}
			t.Error("no error")
		})
	}
}

func endpoint(ip ...byte) []*redoubtv1.Endpoint {
	return []*redoubtv1.Endpoint{{Address: ip, Port: 1, Kind: redoubtv1.Endpoint_KIND_INTERFACE}}
}

type tail struct {
	sets []*redoubtv1.Set
	rule *redoubtv1.Rule
}

// last returns the sets and the rule in the parts of large.
func last(ps []*redoubtv1.NetmapPart) tail {
	var out tail
	for _, p := range ps {
		out.sets = append(out.sets, p.Sets...)
		if len(p.Rules) > 0 {
			out.rule = p.Rules[0]
		}
	}
	return out
}

// TestAssemblersAreBounded sends parts without end.
func TestAssemblersAreBounded(t *testing.T) {
	head := wire.FromNetmap(&proto.Netmap{Version: v(3), Mesh: prototest.Mesh(), Self: 1})[0].Head
	version := wire.FromVersion(v(3))
	for name, part := range map[string]*redoubtv1.NetmapPart{
		"bytes":   {Peers: []*redoubtv1.Peer{{Certificate: make([]byte, 1<<20)}}},
		"peers":   {Peers: repeat[redoubtv1.Peer](10_000)},
		"sets":    {Sets: repeat[redoubtv1.Set](10_000)},
		"members": {Sets: []*redoubtv1.Set{{Members: make([]uint64, 100_000)}}},
		"rules":   {Rules: rules(10_000)},
	} {
		t.Run(name, func(t *testing.T) {
			var a wire.NetmapAssembler
			part.Version, part.More = version, true
			for n := range 200 {
				if part.Head = nil; n == 0 {
					part.Head = head
				}
				if _, _, err := a.Add(part); err != nil {
					if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), "more than") {
						t.Error(err)
					}
					return
				}
			}
			t.Error("taken without end")
		})
	}
	for name, part := range map[string]*redoubtv1.DeltaPart{
		"bytes":           {UpsertPeers: []*redoubtv1.Peer{{Certificate: make([]byte, 1<<20)}}},
		"reaches":         {Reaches: repeat[redoubtv1.ReachChange](10_000)},
		"removed peers":   {RemovePeers: make([]uint64, 10_000)},
		"removed sets":    {RemoveSets: make([]string, 10_000)},
		"changed sets":    {ChangeSets: repeat[redoubtv1.SetChange](10_000)},
		"changed members": {ChangeSets: []*redoubtv1.SetChange{{Add: make([]uint64, 50_000), Remove: make([]uint64, 50_000)}}},
		"removed rules":   {RemoveRules: make([]string, 10_000)},
	} {
		t.Run("delta "+name, func(t *testing.T) {
			var a wire.DeltaAssembler
			part.From, part.To, part.More = version, wire.FromVersion(v(4)), true
			for range 200 {
				if _, _, err := a.Add(part); err != nil {
					if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), "more than") {
						t.Error(err)
					}
					return
				}
			}
			t.Error("taken without end")
		})
	}
}

func repeat[M any](n int) []*M {
	out := make([]*M, n)
	for i := range out {
		out[i] = new(M)
	}
	return out
}

func rules(n int) []*redoubtv1.Rule {
	out := repeat[redoubtv1.Rule](n)
	for _, r := range out {
		r.Direction, r.Action = redoubtv1.Rule_DIRECTION_IN, redoubtv1.Rule_ACTION_ALLOW
	}
	return out
}

func TestDeltaPartsRefused(t *testing.T) {
	whole := func() []*redoubtv1.DeltaPart {
		return wire.FromDelta(proto.Diff(&proto.Netmap{Version: v(1), Mesh: prototest.Mesh(), Self: prototest.Self}, large()))
	}
	for name, damage := range map[string]func(ps []*redoubtv1.DeltaPart){
		"another from":        func(ps []*redoubtv1.DeltaPart) { ps[1].From = wire.FromVersion(v(2)) },
		"another to":          func(ps []*redoubtv1.DeltaPart) { ps[1].To = wire.FromVersion(v(2)) },
		"a late head":         func(ps []*redoubtv1.DeltaPart) { ps[1].Head = &redoubtv1.Head{} },
		"an empty head":       func(ps []*redoubtv1.DeltaPart) { ps[0].Head = &redoubtv1.Head{} },
		"unknown in the part": func(ps []*redoubtv1.DeltaPart) { ps[0].ProtoReflect().SetUnknown(unknown) },
		"unknown in from":     func(ps []*redoubtv1.DeltaPart) { ps[0].From.ProtoReflect().SetUnknown(unknown) },
		"unknown in to":       func(ps []*redoubtv1.DeltaPart) { ps[0].To.ProtoReflect().SetUnknown(unknown) },
		"unknown in a change": func(ps []*redoubtv1.DeltaPart) {
			ps[0].ChangeSets = []*redoubtv1.SetChange{{}}
			ps[0].ChangeSets[0].ProtoReflect().SetUnknown(unknown)
		},
		"unknown in endpoints": func(ps []*redoubtv1.DeltaPart) {
			ps[0].Reaches = []*redoubtv1.ReachChange{{Endpoints: endpoint(192, 0, 2, 1)}}
			ps[0].Reaches[0].Endpoints[0].ProtoReflect().SetUnknown(unknown)
		},
		"too many endpoints": func(ps []*redoubtv1.DeltaPart) {
			ps[0].Reaches = []*redoubtv1.ReachChange{{Endpoints: repeat[redoubtv1.Endpoint](17)}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ps := whole()
			damage(ps)
			var a wire.DeltaAssembler
			for _, p := range ps {
				done, d, err := a.Add(p)
				if done || d != nil {
					t.Fatal("taken")
				}
				if err != nil {
					if !errors.Is(err, wire.ErrMalformed) || a.Busy() {
						t.Errorf("got %v", err)
					}
					return
				}
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	good := []proto.Endpoint{
		{Addr: netip.MustParseAddrPort("192.0.2.1:41641"), Kind: proto.EndpointInterface},
		{Addr: netip.MustParseAddrPort("[2001:db8::1]:1"), Kind: proto.EndpointObserved},
	}
	got, err := wire.ToReach(&redoubtv1.Report{Endpoints: wire.FromEndpoints(good)}, prototest.Mesh())
	if err != nil || diff(good, got.Endpoints) != "" {
		t.Errorf("got %v, %v", got, err)
	}
	mapped := append(make([]byte, 10), 0xff, 0xff, 192, 0, 2, 1)
	for name, e := range map[string]*redoubtv1.Endpoint{
		"none": nil, "empty": {}, "overlay": endpoint(100, 64, 1, 2)[0], "multicast": endpoint(224, 0, 0, 1)[0],
		"unspecified": endpoint(0, 0, 0, 0)[0], "loopback": endpoint(127, 0, 0, 1)[0], "three bytes": endpoint(1, 2, 3)[0],
		"mapped": endpoint(mapped...)[0], "broadcast": endpoint(255, 255, 255, 255)[0],
		"port zero":    {Address: []byte{192, 0, 2, 1}, Kind: redoubtv1.Endpoint_KIND_INTERFACE},
		"port 65536":   {Address: []byte{192, 0, 2, 1}, Port: 65536, Kind: redoubtv1.Endpoint_KIND_INTERFACE},
		"unknown kind": {Address: []byte{192, 0, 2, 1}, Port: 1, Kind: 3},
		"no kind":      {Address: []byte{192, 0, 2, 1}, Port: 1},
	} {
		if got, err := wire.ToReach(&redoubtv1.Report{Endpoints: []*redoubtv1.Endpoint{e}}, prototest.Mesh()); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestFrames(t *testing.T) {
	m := &redoubtv1.Up{Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{NodePublic: bytes.Repeat([]byte{7}, 40_000)}}}
	b, err := wire.AppendFrame([]byte("before"), m)
	if err != nil {
		t.Fatal(err)
	}
	b = b[len("before"):]
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(b), "by bytes": iotest.OneByteReader(bytes.NewReader(b)), "by halves": iotest.HalfReader(bytes.NewReader(b)),
		"end with data": iotest.DataErrReader(bytes.NewReader(b)),
	} {
		for _, buf := range [][]byte{nil, make([]byte, 10), make([]byte, 0, 100_000)} {
			if seeker, ok := r.(io.Seeker); ok {
				_, _ = seeker.Seek(0, io.SeekStart)
			} else if len(buf) > 0 || cap(buf) > 0 {
				continue
			}
			got, err := wire.ReadFrame(r, buf, wire.MaxFrameUnauthenticated)
			if err != nil || !bytes.Equal(got, b[4:]) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
	}
	if _, err := wire.ReadFrame(bytes.NewReader(nil), nil, 1); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end: %v", err)
	}
	for n := 1; n < len(b); n += 997 {
		if _, err := wire.ReadFrame(bytes.NewReader(b[:n]), nil, wire.MaxFrame); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	for _, n := range []uint32{0, wire.MaxFrameUnauthenticated + 1, 10 << 20, 1<<32 - 1} {
		header := binary.BigEndian.AppendUint32(nil, n)
		if _, err := wire.ReadFrame(bytes.NewReader(header), nil, wire.MaxFrameUnauthenticated); !errors.Is(err, wire.ErrFrame) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if out, err := wire.AppendFrame([]byte("x"), &redoubtv1.Up{}); !errors.Is(err, wire.ErrFrame) || string(out) != "x" {
		t.Errorf("an empty message: %q, %v", out, err)
	}
	m.GetRenew().NodePublic = make([]byte, wire.MaxFrame)
	if _, err := wire.AppendFrame(nil, m); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("a great message: %v", err)
	}
}

// promise is a frame header without its message; it records the size of the largest read.
type promise struct {
	header []byte
	asked  int
}

func (p *promise) Read(b []byte) (int, error) {
	p.asked = max(p.asked, len(b))
	if len(p.header) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.header)
	p.header = p.header[n:]
	return n, nil
}

// TestFrameMemory checks that a peer that announces a megabyte and sends nothing costs little memory.
func TestFrameMemory(t *testing.T) {
	p := &promise{header: binary.BigEndian.AppendUint32(nil, wire.MaxFrame)}
	if _, err := wire.ReadFrame(p, nil, wire.MaxFrame); !errors.Is(err, io.ErrUnexpectedEOF) || p.asked > 32<<10 {
		t.Errorf("%d bytes for a promise, %v", p.asked, err)
	}
}

func TestNetmapFile(t *testing.T) {
	nm := large()
	nm.Outage.Grace = 8 * time.Hour
	file, err := wire.EncodeNetmapFile(nm)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.DecodeNetmapFile(file)
	if err != nil || !reflect.DeepEqual(nm, got) {
		t.Fatalf("not the same netmap, %v", err)
	}
	for n := 0; n < len(file); n += 1 + n/3 {
		if _, err := wire.DecodeNetmapFile(file[:n]); !errors.Is(err, wire.ErrFileDamaged) && !errors.Is(err, wire.ErrFileVersion) {
			t.Errorf("cut at %d: %v", n, err)
		}
		bad := bytes.Clone(file)
		bad[n] ^= 1
		if _, err := wire.DecodeNetmapFile(bad); !errors.Is(err, wire.ErrFileDamaged) && !errors.Is(err, wire.ErrFileVersion) {
			t.Errorf("changed at %d: %v", n, err)
		}
	}
	if _, err := wire.DecodeNetmapFile(append(bytes.Clone(file), 0)); !errors.Is(err, wire.ErrFileDamaged) {
		t.Errorf("a byte too many: %v", err)
	}
	newer := bytes.Replace(file, []byte("netmap 1"), []byte("netmap 2"), 1)
	if _, err := wire.DecodeNetmapFile(newer); !errors.Is(err, wire.ErrFileVersion) {
		t.Errorf("a newer file: %v", err)
	}
	nm.Self = 0
	if _, err := wire.EncodeNetmapFile(nm); err == nil {
		t.Error("an invalid netmap written")
	}
}
