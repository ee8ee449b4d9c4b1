package directory

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Limits of tokens.
const (
	MinTokenTime = time.Minute
	MaxTokenTime = 366 * 24 * time.Hour
	MaxTokens    = 100_000
	// keepToken is how long a token is still listed after it expired. As long as candidates wait with it, it is listed longer.
	keepToken = 30 * 24 * time.Hour
)

// TokenSpec describes a token to be created. With neither a user nor tags, nodes have no identity but their name and addresses.
type TokenSpec struct {
	Public    key.TokenPublic
	User      string // login name
	Tags      []string
	Reusable  bool
	Ephemeral bool
	Relay     bool
	TTL       time.Duration
	By        string
	// Replace is the node whose machine the joining one replaces, taking over its identity.
	Replace proto.NodeID
}

// TokenID derives a token's id from its public half.
func TokenID(public key.TokenPublic) string {
	sum := sha256.Sum256(public.Bytes())
	return "t" + proto.NodeID(binary.BigEndian.Uint64(sum[:])).String()[1:]
}

// CreateToken creates a token that lets machines join with the secret half of spec.Public.
func (d *Directory) CreateToken(ctx context.Context, spec TokenSpec) (*Token, error) {
	tags, err := spec.check()
	if err != nil {
		return nil, err
	}
	var token *Token
	err = d.do(ctx, func(t *tx) error {
		token = &Token{
			ID: TokenID(spec.Public), Public: spec.Public, User: spec.User, Tags: tags, Reusable: spec.Reusable,
			Ephemeral: spec.Ephemeral, Relay: spec.Relay, By: spec.By, Created: t.afterRoots(), Expires: t.now.Add(spec.TTL),
		}
		if spec.Replace != 0 {
			n, err := t.trustedNode(spec.Replace)
			if err != nil {
				return err
			}
			token.Replace, token.User, token.Tags = n.ID, n.User.Name, n.Tags
		}
		if _, ok := t.tokens.Get(token.ID); ok {
			return fmt.Errorf("token %s exists already: %w", token.ID, ErrInvalid)
		}
		if t.tokens.Len() >= MaxTokens {
			return fmt.Errorf("there are %d tokens already; wait until some have expired: %w", MaxTokens, ErrInvalid)
		}
		why := "expires " + token.Expires.Format(time.RFC3339)
		if token.Replace != 0 {
			why += ", replaces the machine of node " + token.Replace.String()
		}
		t.recordOf(token.User, spec.By, audit.TokenCreate, token.ID, token.who(), why)
		return t.setToken(token)
	})
	if err != nil {
		return nil, err
	}
	return token, nil
}

func (s TokenSpec) check() (tags []string, err error) {
	if s.TTL < MinTokenTime || s.TTL > MaxTokenTime {
		return nil, fmt.Errorf("token for %v: want %v to %v: %w", s.TTL, MinTokenTime, MaxTokenTime, ErrInvalid)
	}
	if s.Public.IsZero() {
		return nil, fmt.Errorf("token without a public key: %w", ErrInvalid)
	}
	if s.Relay && (s.User != "" || len(s.Tags) > 0 || s.Ephemeral || s.Replace != 0) {
		return nil, fmt.Errorf("token for a relay: a relay has no user, no tags and replaces no node: %w", ErrInvalid)
	}
	if s.Replace != 0 && (s.User != "" || len(s.Tags) > 0 || s.Reusable || s.Ephemeral) {
		return nil, fmt.Errorf("token that replaces a node's machine: it is for one machine, which gets that node's user and tags: %w", ErrInvalid)
	}
	if s.User != "" && len(s.Tags) > 0 {
		return nil, fmt.Errorf("token for user %.64q with %d tags: want either a user or tags: a node belongs to a user or has roles: %w",
			s.User, len(s.Tags), ErrInvalid)
	}
	// A name that policies cannot name, or would take for several users, is not a valid login name.
	if s.User != "" && (acl.CheckUser(s.User) != nil || strings.HasSuffix(s.User, "@")) {
		return nil, fmt.Errorf("user %.64q: want a login name such as ann@example.com: %w", s.User, ErrInvalid)
	}
	tags = slices.Clone(s.Tags)
	slices.Sort(tags)
	tags = slices.Compact(tags)
	if len(tags) > proto.MaxTags {
		return nil, fmt.Errorf("token with %d tags: at most %d: %w", len(tags), proto.MaxTags, ErrInvalid)
	}
	for _, tag := range tags {
		if !proto.ValidTag(tag) {
			return nil, fmt.Errorf("tag %.64q: want tag: and a name of letters, digits, '-' and '_' that begins with a letter: %w", tag, ErrInvalid)
		}
	}
	return tags, nil
}

// who names whom the token is for.
func (t *Token) who() string {
	switch {
	case t.User != "":
		return t.User
	case len(t.Tags) > 0:
		return strings.Join(t.Tags, ",")
	case t.Relay:
		return "a relay"
	}
	return "nobody in particular"
}

// user returns the owner of machines that join with the token.
func (t *Token) user() proto.User {
	return proto.User{Issuer: proto.IssuerToken, Subject: t.User, Name: t.User}
}

// RevokeToken revokes a token. Nodes that joined with it stay, candidates waiting with it are refused. It does nothing if the
// token is already revoked.
func (d *Directory) RevokeToken(ctx context.Context, id, by string) (*Token, error) {
	var token *Token
	err := d.do(ctx, func(t *tx) error {
		old, ok := t.tokens.Get(id)
		if !ok {
			return fmt.Errorf("token %.32q: %w (`token list` shows all)", id, ErrTokenUnknown)
		}
		if token = old; old.Revoked != nil {
			return nil
		}
		revoked := *old
		revoked.Revoked = &Revocation{At: t.now, By: by, Reason: "revoked"}
		token = &revoked
		t.recordOf(token.User, by, audit.TokenRevoke, id, token.who(), "")
		for _, c := range slices.Collect(t.ofToken(id)) {
			t.forgetCandidate(c)
		}
		return t.setToken(token)
	})
	if err != nil {
		return nil, err
	}
	return token, nil
}
