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

// Has says whether a is one of the two.
func (a Addrs) Has(x netip.Addr) bool { return x.IsValid() && (x == a.V4 || x == a.V6) }

// Slice lists them, IPv4 first.
func (a Addrs) Slice() []netip.Addr { return []netip.Addr{a.V4, a.V6} }

// User is a person as an issuer knows them. Identity is issuer and subject; the name is for reading and for policies.
type User struct {
	Issuer, Subject string
	// Name is the login name that policies use, such as ann@example.com.
	Name string
	// AuthTime is when the person last proved who they are; zero where nobody did.
	AuthTime time.Time
}

// IsZero says that there is no person behind the node.
func (u User) IsZero() bool { return u.Issuer == "" && u.Subject == "" }

// IssuerToken is the issuer of users that an administrator named when creating a join token.
const IssuerToken = "token"

// Identity is who a node is, as its certificate says: a user's machine, or a machine with a role, never both.
type Identity struct {
	ID    NodeID
	Name  string // one DNS label, unique in the mesh
	Addrs Addrs
	User  User
	Tags  []string // sorted, each "tag:name"
}

// HasTag says whether the node carries the tag.
func (i Identity) HasTag(tag string) bool {
	_, ok := slices.BinarySearch(i.Tags, tag)
	return ok
}

// Who names the identity as a person would: the user's name, or the tags.
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
