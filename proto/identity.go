package proto

import (
	"net/netip"
	"slices"
	"time"
)

// Addrs are the overlay addresses of a node: exactly one of each family.
type Addrs struct {
	V4, V6 netip.Addr
}

// Has reports whether x is one of the two.
func (a Addrs) Has(x netip.Addr) bool { return x.IsValid() && (x == a.V4 || x == a.V6) }

// Slice returns both addresses, IPv4 first.
func (a Addrs) Slice() []netip.Addr { return []netip.Addr{a.V4, a.V6} }

// User is a person as an issuer knows them. Issuer and subject are the identity; the name is for display and for policies.
type User struct {
	Issuer, Subject string
	// Name is the login name that policies use, such as ann@example.com.
	Name string
	// AuthTime is when the person last authenticated; zero if nobody did.
	AuthTime time.Time
}

// IsZero reports whether there is no person behind the node.
func (u User) IsZero() bool { return u.Issuer == "" && u.Subject == "" }

// IssuerToken is the issuer of users that an administrator named when creating a join token.
const IssuerToken = "token"

// Identity is who a node is, according to its certificate: a user's machine, or a machine with a role, never both.
type Identity struct {
	ID    NodeID
	Name  string // one DNS label, unique in the mesh
	Addrs Addrs
	User  User
	Tags  []string // sorted, each "tag:name"
}

// HasTag reports whether the node has the tag.
func (i Identity) HasTag(tag string) bool {
	_, ok := slices.BinarySearch(i.Tags, tag)
	return ok
}

// Who returns a name for the identity that people understand: the user's name, or the tags.
func (i Identity) Who() string {
	if !i.User.IsZero() {
		return i.User.Name
	}
	s := ""
	for n, t := range i.Tags {
		if n > 0 {
			s += ","
		}
		s += t
	}
	return s
}
