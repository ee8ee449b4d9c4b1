package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/fact"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// ErrMalformed is wrapped by every error about the contents of a message or a file.
var ErrMalformed = errors.New("malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// known returns an error if a message has unknown fields.
func known(m pb.Message) error {
	if len(m.ProtoReflect().GetUnknown()) != 0 {
		return malformed("a %s has a field that this program does not know; update it", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// convert applies f to each element of a list, and stops at the first error.
func convert[A, B any](in []A, f func(A) (B, error)) ([]B, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		b, err := f(a)
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

// each applies f, which cannot fail, to each element of a list.
func each[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

// FromVersion encodes a version.
func FromVersion(v proto.Version) *redoubtv1.Version {
	return &redoubtv1.Version{Epoch: v.Epoch, N: v.N}
}

// ToVersion decodes a version; nil is the zero version.
func ToVersion(v *redoubtv1.Version) (proto.Version, error) {
	return proto.Version{Epoch: v.GetEpoch(), N: v.GetN()}, known(v)
}

// FromAddr encodes an address as 4 or 16 bytes.
func FromAddr(a netip.Addr) []byte { return a.AsSlice() }

// ToAddr decodes an address.
func ToAddr(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4In6() {
		return netip.Addr{}, malformed("an address of %d bytes, want 4 or 16, and IPv4 in 4", len(b))
	}
	return a, nil
}

// FromPrefix encodes a prefix.
func FromPrefix(p netip.Prefix) *redoubtv1.Prefix {
	return &redoubtv1.Prefix{Address: FromAddr(p.Addr()), Bits: uint32(p.Bits())}
}

// FromRoutes encodes the routes that a node advertises.
func FromRoutes(in []netip.Prefix) []*redoubtv1.Prefix { return each(in, FromPrefix) }

// ToRoutes decodes routes. It does not check whether a node may advertise them.
func ToRoutes(in []*redoubtv1.Prefix) ([]netip.Prefix, error) {
	if len(in) > proto.MaxRoutes {
		return nil, malformed("%d routes, at most %d", len(in), proto.MaxRoutes)
	}
	return convert(in, ToPrefix)
}

// ToPrefix decodes a prefix, which must be masked.
func ToPrefix(p *redoubtv1.Prefix) (netip.Prefix, error) {
	a, err := ToAddr(p.GetAddress())
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.GetBits() > uint32(a.BitLen()) {
		return netip.Prefix{}, malformed("a prefix of %d bits", p.GetBits())
	}
	out := netip.PrefixFrom(a, int(p.GetBits()))
	if out.Masked() != out {
		return netip.Prefix{}, malformed("prefix %s has bits beyond its length", out)
	}
	return out, known(p)
}

// FromMesh encodes a mesh.
func FromMesh(m proto.Mesh) *redoubtv1.Mesh {
	return &redoubtv1.Mesh{Id: string(m.ID), Domain: m.Domain, V4: FromPrefix(m.V4), V6: FromPrefix(m.V6)}
}

// ToMesh decodes a mesh, which must be valid.
func ToMesh(m *redoubtv1.Mesh) (proto.Mesh, error) {
	v4, err := ToPrefix(m.GetV4())
	if err != nil {
		return proto.Mesh{}, fmt.Errorf("IPv4 range: %w", err)
	}
	v6, err := ToPrefix(m.GetV6())
	if err != nil {
		return proto.Mesh{}, fmt.Errorf("IPv6 range: %w", err)
	}
	out := proto.Mesh{ID: proto.MeshID(m.GetId()), Domain: m.GetDomain(), V4: v4, V6: v6}
	if err := out.Validate(); err != nil {
		return proto.Mesh{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return out, known(m)
}

// FromEndpoint encodes an endpoint.
func FromEndpoint(e proto.Endpoint) *redoubtv1.Endpoint {
	return &redoubtv1.Endpoint{
		Address: FromAddr(e.Addr.Addr()), Port: uint32(e.Addr.Port()), Kind: redoubtv1.Endpoint_Kind(e.Kind),
	}
}

// FromEndpoints encodes endpoints.
func FromEndpoints(es []proto.Endpoint) []*redoubtv1.Endpoint { return each(es, FromEndpoint) }

func toEndpoint(e *redoubtv1.Endpoint) (proto.Endpoint, error) {
	a, err := ToAddr(e.GetAddress())
	if err != nil {
		return proto.Endpoint{}, err
	}
	if e.GetPort() == 0 || e.GetPort() > 65535 {
		return proto.Endpoint{}, malformed("port %d", e.GetPort())
	}
	if e.GetKind() != redoubtv1.Endpoint_KIND_INTERFACE && e.GetKind() != redoubtv1.Endpoint_KIND_OBSERVED {
		return proto.Endpoint{}, malformed("endpoint of kind %d", e.GetKind())
	}
	out := proto.Endpoint{Addr: netip.AddrPortFrom(a, uint16(e.GetPort())), Kind: proto.EndpointKind(e.GetKind())}
	return out, known(e)
}

// toEndpoints decodes a limited number of endpoints. The caller must check whether they are valid in the mesh.
func toEndpoints(es []*redoubtv1.Endpoint) ([]proto.Endpoint, error) {
	if len(es) > proto.MaxEndpoints {
		return nil, malformed("%d endpoints, at most %d", len(es), proto.MaxEndpoints)
	}
	return convert(es, toEndpoint)
}

// ToReach decodes how a node of a mesh says it can be reached: at most 16 endpoints, none in the overlay, and each the address of
// a single other machine.
func ToReach(m *redoubtv1.Report, mesh proto.Mesh) (proto.Reach, error) {
	r, err := toReach(m)
	if err != nil {
		return proto.Reach{}, err
	}
	for _, e := range r.Endpoints {
		if !mesh.ValidEndpoint(e) {
			return proto.Reach{}, malformed("endpoint %s cannot be called from another machine", e.Addr)
		}
	}
	if err := mesh.ValidReach(proto.Reach{PathKey: r.PathKey}); err != nil {
		return proto.Reach{}, malformed("%s", err)
	}
	return r, nil
}

// FromUnmet lists the rules that do not hold, for people: each rule and reason once, however many parts of the rule are affected,
// with the facts that people can change.
func FromUnmet(rules []proto.Withheld) (out []*redoubtv1.WithheldRule) {
	for _, w := range rules {
		if slices.ContainsFunc(out, func(o *redoubtv1.WithheldRule) bool {
			return o.GetPath() == w.Origin.Path && o.GetReason() == w.Reason
		}) {
			continue
		}
		out = append(out, &redoubtv1.WithheldRule{
			Path: w.Origin.Path, Line: int32(w.Origin.Line), Reason: w.Reason, Facts: fact.Named(w.Reason),
		})
	}
	return out
}
