package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

// DefaultDomain is the DNS domain of a mesh whose administrator chose none.
const DefaultDomain = "mesh.internal"

// Plan holds the mesh settings that an administrator may choose, once.
type Plan struct {
	Domain string       // empty: DefaultDomain, or the existing mesh's
	V4     netip.Prefix // zero: random, or the existing mesh's
}

// Ensure creates the mesh if the store has none, and returns it. A plan that conflicts with the existing mesh is refused:
// domain and range are in every certificate.
func Ensure(ctx context.Context, s store.Store, plan Plan, random io.Reader, now time.Time) (Mesh, error) {
	m, err := loadMesh(ctx, s)
	if errors.Is(err, store.ErrNotFound) {
		return makeMesh(ctx, s, plan, random, now)
	}
	if err != nil {
		return Mesh{}, err
	}
	if plan.Domain != "" && plan.Domain != m.Domain {
		return Mesh{}, fmt.Errorf("domain %s: this mesh has %s since its first start; leave the domain out: %w", plan.Domain, m.Domain, ErrInvalid)
	}
	if plan.V4.IsValid() && plan.V4 != m.V4 {
		return Mesh{}, fmt.Errorf("range %v: this mesh has %v since its first start; leave the range out: %w", plan.V4, m.V4, ErrInvalid)
	}
	return m, nil
}

func loadMesh(ctx context.Context, s store.Store) (Mesh, error) {
	e, err := s.Get(ctx, meshKey)
	if err != nil {
		return Mesh{}, fmt.Errorf("read the mesh: %w", err)
	}
	r, err := parse[meshRecord](e)
	if err != nil {
		return Mesh{}, err
	}
	m := Mesh{Mesh: proto.Mesh{ID: r.ID, Domain: r.Domain, V4: r.V4, V6: r.V6}, Created: r.Created}
	if err := m.Validate(); err != nil {
		return Mesh{}, fmt.Errorf("record %s: %w", e.Key, err)
	}
	return m, nil
}

func makeMesh(ctx context.Context, s store.Store, plan Plan, random io.Reader, now time.Time) (Mesh, error) {
	m, err := planned(plan, random)
	if err != nil {
		return Mesh{}, err
	}
	m.Created = wall(now)
	mesh, err := putRecord(meshKey, meshRecord{version: v1, ID: m.ID, Domain: m.Domain, V4: m.V4, V6: m.V6, Created: m.Created})
	if err != nil {
		return Mesh{}, err
	}
	first := headRecord{version: v1, Epoch: 1}
	ops, err := first.enter([]audit.Record{{
		By: "coordinator", Action: audit.MeshCreate, Subject: string(m.ID), Name: m.Domain, Reason: fmt.Sprintf("first start; %v and %v", m.V4, m.V6),
	}}, page{now: m.Created}, nil)
	if err != nil {
		return Mesh{}, err
	}
	head, err := putRecord(headKey, first)
	if err != nil {
		return Mesh{}, err
	}
	if _, err := s.Txn(ctx, []store.Cmp{{Key: meshKey}, {Key: headKey}}, append(ops, mesh, head)); err != nil {
		return Mesh{}, fmt.Errorf("write the new mesh: %w", err)
	}
	return m, nil
}

func planned(plan Plan, random io.Reader) (m Mesh, err error) {
	if m.ID, err = proto.NewMeshID(random); err != nil {
		return Mesh{}, err
	}
	if m.Domain = plan.Domain; m.Domain == "" {
		m.Domain = DefaultDomain
	}
	if err := CheckDomain(m.Domain); err != nil {
		return Mesh{}, err
	}
	if m.V4 = plan.V4; !m.V4.IsValid() {
		if m.V4, err = ipam.RandomV4(random); err != nil {
			return Mesh{}, err
		}
	}
	if err := ipam.CheckV4(m.V4); err != nil {
		return Mesh{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if m.V6, err = ipam.RandomV6(random); err != nil {
		return Mesh{}, err
	}
	if err := m.Validate(); err != nil {
		return Mesh{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return m, nil
}

// CheckDomain returns an error if domain cannot be a mesh's domain.
func CheckDomain(domain string) error {
	if len(domain) > proto.MaxDomain {
		return fmt.Errorf("domain %.32q...: longer than %d characters: %w", domain, proto.MaxDomain, ErrInvalid)
	}
	for l := range strings.SplitSeq(domain, ".") {
		if !proto.ValidName(l) {
			return fmt.Errorf("domain %q: want labels of a-z, 0-9 and '-', such as %s: %w", domain, DefaultDomain, ErrInvalid)
		}
	}
	return nil
}

// wall returns t as records store it.
func wall(t time.Time) time.Time { return t.Round(0).UTC() }
