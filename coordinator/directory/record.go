package directory

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Store keys and key prefixes; see the package comment.
const (
	meshKey       = "mesh"
	headKey       = "head"
	keysKey       = "keys"
	nodePrefix    = "node/"
	devicePrefix  = "key/device/"
	nodeKeyPrefix = "key/node/"
	tokenPrefix   = "token/"
	policyPrefix  = "policy/"
	freedPrefix   = "freed/"
	rolePrefix    = "role/"
	traitsPrefix  = "traits/"
)

func nodePath(id proto.NodeID) string      { return nodePrefix + id.String() }
func devicePath(k key.DevicePublic) string { return devicePrefix + hex.EncodeToString(k.Bytes()) }
func nodeKeyPath(k key.NodePublic) string  { return nodeKeyPrefix + hex.EncodeToString(k.Bytes()) }
func tokenPath(id string) string           { return tokenPrefix + id }
func policyPath(number uint64) string      { return fmt.Sprintf("%s%016x", policyPrefix, number) }
func freedPath(a netip.Addr) string        { return freedPrefix + a.String() }
func traitsPath(id proto.NodeID) string    { return traitsPrefix + id.String() }

// rolePath uses hexadecimal because a login name may not be a valid key.
func rolePath(login string) string { return rolePrefix + hex.EncodeToString([]byte(login)) }

func putRecord(k string, v any) (store.Op, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode %s: %w", k, err)
	}
	return store.Put(k, b), nil
}

// version is the first field of every record. A record with another version is refused rather than guessed at. Migrations
// rewrite records when their form changes.
type version struct {
	V int `json:"v"`
}

func (v version) recordVersion() int { return v.V }

// v1 is the version of all records defined below.
var v1 = version{1}

type versioned interface{ recordVersion() int }

// parse decodes a record strictly: known fields only, a single value, a known version.
func parse[T versioned](e store.Entry) (T, error) {
	var v T
	d := json.NewDecoder(bytes.NewReader(e.Value))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return v, fmt.Errorf("record %s: more than one value", e.Key)
	}
	if v.recordVersion() != v1.V {
		return v, fmt.Errorf("record %s: version %d, this program knows version %d", e.Key, v.recordVersion(), v1.V)
	}
	return v, nil
}

type meshRecord struct {
	version
	ID      proto.MeshID `json:"id"`
	Domain  string       `json:"domain"`
	V4      netip.Prefix `json:"v4"`
	V6      netip.Prefix `json:"v6"`
	Created time.Time    `json:"created"`
}

type headRecord struct {
	version
	Epoch    uint64 `json:"epoch"`
	Reserved uint64 `json:"reserved"` // no snapshot so far had a greater N
	Audit    uint64 `json:"audit"`    // number of the last audit record
	// AuditHash is the hash of the last audit record; AuditKey identifies the key that signed its checkpoint, and is empty
	// before the first.
	AuditHash string `json:"auditHash"`
	AuditKey  string `json:"auditKey,omitempty"`
}

type heldRecord struct {
	version
	Node  proto.NodeID `json:"node"`
	Since time.Time    `json:"since"`
	Until time.Time    `json:"until,omitzero"` // for a retired node key; zero: forever
}

type freedRecord struct {
	version
	Until time.Time `json:"until"`
}

type policyRecord struct {
	version
	Number  uint64    `json:"number"`
	Source  string    `json:"source"`
	Applied time.Time `json:"applied"`
	By      string    `json:"by"`
	Comment string    `json:"comment,omitempty"`
	Of      uint64    `json:"of,omitempty"`
}

type roleRecord struct {
	version
	User  string   `json:"user"`
	Roles []string `json:"roles"`
}

type factRecord struct {
	Name    string    `json:"name"`
	Value   string    `json:"value"`
	Source  string    `json:"source"`
	Set     time.Time `json:"set"`
	Expires time.Time `json:"expires,omitzero"`
	// TTL is set for posture facts. When the node was last heard is not on disk: opening the directory counts as hearing it.
	TTL time.Duration `json:"ttl,omitzero"`
}

type traitsRecord struct {
	version
	Node       proto.NodeID   `json:"node"`
	Facts      []factRecord   `json:"facts,omitempty"`
	Advertised []netip.Prefix `json:"advertised,omitempty"`
	Approved   []netip.Prefix `json:"approved,omitempty"`
}

func traitsOp(id proto.NodeID, t *Traits) (store.Op, error) {
	r := traitsRecord{version: v1, Node: id, Advertised: t.Advertised, Approved: t.Approved}
	for _, f := range t.Facts {
		if f.health() {
			f.Expires = time.Time{}
		}
		r.Facts = append(r.Facts, factRecord(f))
	}
	return putRecord(traitsPath(id), r)
}

func parseTraits(e store.Entry) (proto.NodeID, *Traits, error) {
	r, err := parse[traitsRecord](e)
	if err != nil {
		return 0, nil, err
	}
	if traitsPath(r.Node) != e.Key {
		return 0, nil, fmt.Errorf("record %s: holds the traits of node %s", e.Key, r.Node)
	}
	t := &Traits{Advertised: r.Advertised, Approved: r.Approved}
	for i, f := range r.Facts {
		if i > 0 && r.Facts[i-1].Name >= f.Name || !proto.ValidText(f.Name, proto.MaxName) || !proto.ValidText(f.Value, MaxFact) {
			return 0, nil, fmt.Errorf("record %s: facts are not sorted, not unique or not printable at %.64q", e.Key, f.Name)
		}
		t.Facts = append(t.Facts, Fact(f))
	}
	return r.Node, t, nil
}

type revocationRecord struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

func revocationOf(r *Revocation) *revocationRecord {
	if r == nil {
		return nil
	}
	return &revocationRecord{At: r.At, By: r.By, Reason: r.Reason}
}

func (r *revocationRecord) value() *Revocation {
	if r == nil {
		return nil
	}
	return &Revocation{At: r.At, By: r.By, Reason: r.Reason}
}

type tokenRecord struct {
	version
	Public    []byte            `json:"public"`
	User      string            `json:"user,omitempty"`
	Tags      []string          `json:"tags,omitempty"`
	Reusable  bool              `json:"reusable,omitempty"`
	Ephemeral bool              `json:"ephemeral,omitempty"`
	Relay     bool              `json:"relay,omitempty"`
	By        string            `json:"by"`
	Created   time.Time         `json:"created"`
	Expires   time.Time         `json:"expires"`
	Uses      uint32            `json:"uses,omitempty"`
	Spent     []byte            `json:"spent,omitempty"`
	SpentBy   proto.NodeID      `json:"spentBy,omitempty"`
	Revoked   *revocationRecord `json:"revoked,omitempty"`
	Replace   proto.NodeID      `json:"replace,omitempty"`
}

func tokenOp(t *Token) (store.Op, error) {
	r := tokenRecord{
		version: v1, Public: t.Public.Bytes(), User: t.User, Tags: t.Tags, Reusable: t.Reusable, Ephemeral: t.Ephemeral, Relay: t.Relay,
		By: t.By, Created: t.Created, Expires: t.Expires, Uses: t.Uses, SpentBy: t.SpentBy, Revoked: revocationOf(t.Revoked),
		Replace: t.Replace,
	}
	if t.SpentBy != 0 {
		r.Spent = t.Spent.Bytes()
	}
	return putRecord(tokenPath(t.ID), r)
}

func parseToken(e store.Entry) (*Token, error) {
	r, err := parse[tokenRecord](e)
	if err != nil {
		return nil, err
	}
	t := &Token{
		User: r.User, Tags: r.Tags, Reusable: r.Reusable, Ephemeral: r.Ephemeral, Relay: r.Relay, By: r.By, Created: r.Created,
		Expires: r.Expires, Uses: r.Uses, SpentBy: r.SpentBy, Revoked: r.Revoked.value(),
		Replace: r.Replace,
	}
	if t.Public, err = key.ParseTokenPublic(r.Public); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if t.ID = TokenID(t.Public); tokenPath(t.ID) != e.Key {
		return nil, fmt.Errorf("record %s: holds token %s", e.Key, t.ID)
	}
	if r.SpentBy != 0 {
		if t.Spent, err = key.ParseDevicePublic(r.Spent); err != nil {
			return nil, fmt.Errorf("record %s: %w", e.Key, err)
		}
	}
	return t, nil
}

type userRecord struct {
	Issuer   string    `json:"issuer"`
	Subject  string    `json:"subject"`
	Name     string    `json:"name"`
	AuthTime time.Time `json:"authTime,omitzero"`
}

type quarantineRecord struct {
	At  time.Time `json:"at"`
	Why string    `json:"why"`
}

type certificateRecord struct {
	DER       []byte    `json:"der"`
	Serial    string    `json:"serial"`
	Sequence  uint64    `json:"sequence"`
	Issued    time.Time `json:"issued"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

type nodeRecord struct {
	version
	ID          proto.NodeID       `json:"id"`
	Name        string             `json:"name"`
	V4          netip.Addr         `json:"v4"`
	V6          netip.Addr         `json:"v6"`
	User        *userRecord        `json:"user,omitempty"`
	Tags        []string           `json:"tags,omitempty"`
	Device      []byte             `json:"device"`
	Key         []byte             `json:"key"`
	Next        []byte             `json:"next,omitempty"`
	NextFrom    time.Time          `json:"nextFrom,omitzero"`
	Seed        []byte             `json:"seed,omitempty"`
	Ticket      uint64             `json:"ticket,omitempty"`
	Used        uint64             `json:"used,omitempty"`
	Released    bool               `json:"released,omitempty"`
	Quarantine  *quarantineRecord  `json:"quarantine,omitempty"`
	Level       string             `json:"level"`
	Ephemeral   bool               `json:"ephemeral,omitempty"`
	Relay       bool               `json:"relay,omitempty"`
	Hostname    string             `json:"hostname"`
	Token       string             `json:"token"`
	Created     time.Time          `json:"created"`
	Revoked     *revocationRecord  `json:"revoked,omitempty"`
	Certificate certificateRecord  `json:"certificate"`
	Attestation *attestationRecord `json:"attestation,omitempty"` // nil: enrolled with a token, before other attestation existed
	Verdict     *verdictRecord     `json:"verdict,omitempty"`
}

type attestationRecord struct {
	Kind      string    `json:"kind"`
	Device    string    `json:"device,omitempty"`
	Selectors []string  `json:"selectors,omitempty"`
	Checks    []string  `json:"checks,omitempty"`
	Again     bool      `json:"again,omitempty"`
	Known     []byte    `json:"known,omitempty"`
	Highest   string    `json:"highest"`
	Since     time.Time `json:"since"`
	Lapse     string    `json:"lapse,omitempty"`
}

func attestationOf(a *Attestation) *attestationRecord {
	return &attestationRecord{
		Kind: a.Kind, Device: a.Device, Selectors: a.Selectors, Checks: a.Checks, Again: a.Again, Known: a.Known,
		Highest: a.Highest.String(), Since: a.Since, Lapse: a.Lapse,
	}
}

// kindToken is the kind of evidence of nodes that enrolled before other kinds existed.
const kindToken = "token"

func (r *attestationRecord) value(n *Node) (Attestation, error) {
	if r == nil {
		return Attestation{Attested: Attested{Kind: kindToken}, Highest: n.Level, Since: n.Created}, nil
	}
	highest, err := cert.ParseLevel(r.Highest)
	return Attestation{
		Attested: Attested{Kind: r.Kind, Device: r.Device, Selectors: r.Selectors, Checks: r.Checks, Again: r.Again, Known: r.Known},
		Highest:  highest, Since: r.Since, Lapse: r.Lapse,
	}, err
}

func nodeOp(n *Node) (store.Op, error) {
	r := nodeRecord{
		version: v1, ID: n.ID, Name: n.Name, V4: n.Addrs.V4, V6: n.Addrs.V6, Tags: n.Tags, Device: n.Device.Bytes(),
		Key: n.Key.Bytes(), NextFrom: n.NextFrom, Seed: n.Seed, Ticket: n.Ticket, Used: n.Used, Released: n.Released, Level: n.Level.String(), Ephemeral: n.Ephemeral, Relay: n.Relay, Hostname: n.Hostname, Token: n.Token,
		Created: n.Created, Revoked: revocationOf(n.Revoked), Certificate: certificateRecord(n.Certificate),
		Attestation: attestationOf(&n.Attestation), Verdict: verdictOf(n.Verdict),
	}
	if !n.User.IsZero() {
		u := userRecord(n.User)
		r.User = &u
	}
	if !n.Next.IsZero() {
		r.Next = n.Next.Bytes()
	}
	if n.Quarantine != nil {
		q := quarantineRecord(*n.Quarantine)
		r.Quarantine = &q
	}
	return putRecord(nodePath(n.ID), r)
}

func parseNode(e store.Entry) (*Node, error) {
	r, err := parse[nodeRecord](e)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Identity:  proto.Identity{ID: r.ID, Name: r.Name, Addrs: proto.Addrs{V4: r.V4, V6: r.V6}, Tags: r.Tags},
		Ephemeral: r.Ephemeral, Relay: r.Relay, Hostname: r.Hostname, Token: r.Token, Created: r.Created, Revoked: r.Revoked.value(),
		Certificate: Certificate(r.Certificate), NextFrom: r.NextFrom, Seed: r.Seed, Ticket: r.Ticket, Used: r.Used, Released: r.Released,
		Verdict: r.Verdict.value(),
	}
	if r.User != nil {
		n.User = proto.User(*r.User)
	}
	if nodePath(n.ID) != e.Key {
		return nil, fmt.Errorf("record %s: holds node %s", e.Key, n.ID)
	}
	if n.Device, err = key.ParseDevicePublic(r.Device); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if n.Key, err = key.ParseNodePublic(r.Key); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if r.Next != nil {
		if n.Next, err = key.ParseNodePublic(r.Next); err != nil {
			return nil, fmt.Errorf("record %s: %w", e.Key, err)
		}
	}
	if r.Quarantine != nil {
		q := Quarantine(*r.Quarantine)
		n.Quarantine = &q
	}
	if n.Level, err = cert.ParseLevel(r.Level); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if n.Attestation, err = r.Attestation.value(n); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	return n, nil
}

func parsePolicy(e store.Entry) (*Policy, error) {
	r, err := parse[policyRecord](e)
	if err != nil {
		return nil, err
	}
	if policyPath(r.Number) != e.Key {
		return nil, fmt.Errorf("record %s: holds policy %d", e.Key, r.Number)
	}
	return &Policy{Number: r.Number, Source: r.Source, Applied: r.Applied, By: r.By, Comment: r.Comment, Of: r.Of}, nil
}

// heldKey returns the key in the index of held keys for the path of a held-key record.
func heldKey(path string) (string, error) {
	if h, ok := strings.CutPrefix(path, devicePrefix); ok {
		b, err := hex.DecodeString(h)
		return "d" + string(b), err
	}
	h, ok := strings.CutPrefix(path, nodeKeyPrefix)
	if !ok {
		return "", fmt.Errorf("neither a device key nor a node key")
	}
	b, err := hex.DecodeString(h)
	return "n" + string(b), err
}
