package cert

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The node extension, in DER. Version 1 is frozen: a reader rejects anything in it that it does not know.
//
//	NodeExtension ::= SEQUENCE {
//	    version   INTEGER (1),
//	    sequence  INTEGER (0..2^64-1),
//	    level     ENUMERATED,
//	    keys      SEQUENCE SIZE (1..2) OF SEQUENCE {
//	        public     OCTET STRING (SIZE (32)),
//	        notBefore  INTEGER,                   -- Unix seconds, like all times here
//	        notAfter   INTEGER },
//	    tags      SEQUENCE OF UTF8String,         -- sorted; empty if there is a user
//	    user      [0] SEQUENCE {
//	        issuer     UTF8String,
//	        subject    UTF8String,
//	        name       UTF8String,
//	        authTime   INTEGER } OPTIONAL }       -- 0: the user has not authenticated
//
// The arc 2.25 is for UUIDs; this one is cut to the 31 bits that crypto/x509 accepts in an arc. Anything added after version 1
// must go into a second extension, 2.25.1702281195.2, which is never critical, so that readers of version 1 skip it.
var oidNode = asn1.ObjectIdentifier{2, 25, 1702281195, 1}

const (
	extensionVersion = 1
	maxKeys          = 2
	maxTime          = 253402300799 // the last second of the year 9999, the end of X.509 times
)

var userTag = der.Tag(0).ContextSpecific().Constructed()

// extension is the content of the node extension.
type extension struct {
	Sequence uint64
	Level    Level
	Keys     []NodeKey
	Tags     []string
	User     proto.User
}

func (e extension) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Uint64(extensionVersion)
		b.AddASN1Uint64(e.Sequence)
		b.AddASN1Enum(int64(e.Level))
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, k := range e.Keys {
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1OctetString(k.Public.Bytes())
					b.AddASN1Int64(unix(k.NotBefore))
					b.AddASN1Int64(unix(k.NotAfter))
				})
			}
		})
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, t := range e.Tags {
				addText(b, t)
			}
		})
		if e.User.IsZero() {
			return
		}
		b.AddASN1(userTag, func(b *cryptobyte.Builder) {
			addText(b, e.User.Issuer)
			addText(b, e.User.Subject)
			addText(b, e.User.Name)
			b.AddASN1Int64(unix(e.User.AuthTime))
		})
	})
	return b.Bytes()
}

// parseExtension decodes the extension and rejects every encoding except the one that marshal produces.
func parseExtension(b []byte) (extension, error) {
	var e extension
	in := cryptobyte.String(b)
	var body, keys, tags, user cryptobyte.String
	var version uint64
	var level int
	var hasUser bool
	if !in.ReadASN1(&body, der.SEQUENCE) || !in.Empty() || !body.ReadASN1Integer(&version) {
		return extension{}, fmt.Errorf("%w: not a sequence with a version", ErrExtension)
	}
	if version != extensionVersion {
		return extension{}, fmt.Errorf("%w: version %d, this program knows %d", ErrExtension, version, extensionVersion)
	}
	if !body.ReadASN1Integer(&e.Sequence) || !body.ReadASN1Enum(&level) || !body.ReadASN1(&keys, der.SEQUENCE) ||
		!body.ReadASN1(&tags, der.SEQUENCE) || !body.ReadOptionalASN1(&user, &hasUser, userTag) || !body.Empty() {
		return extension{}, fmt.Errorf("%w: fields are missing or unknown", ErrExtension)
	}
	if level < 0 || level > 255 || !Level(level).Valid() {
		return extension{}, fmt.Errorf("%w: attestation level %d", ErrExtension, level)
	}
	e.Level = Level(level)
	var err error
	if e.Keys, err = parseKeys(keys); err != nil {
		return extension{}, err
	}
	for !tags.Empty() {
		t, ok := readText(&tags)
		if !ok || len(e.Tags) == proto.MaxTags {
			return extension{}, fmt.Errorf("%w: tags", ErrExtension)
		}
		e.Tags = append(e.Tags, t)
	}
	if hasUser {
		if e.User, err = parseUser(user); err != nil {
			return extension{}, err
		}
	}
	if again, err := e.marshal(); err != nil || !bytes.Equal(again, b) {
		return extension{}, fmt.Errorf("%w: not in canonical form", ErrExtension)
	}
	return e, nil
}

func parseKeys(in cryptobyte.String) ([]NodeKey, error) {
	var keys []NodeKey
	for !in.Empty() {
		var one, public cryptobyte.String
		var from, to int64
		if !in.ReadASN1(&one, der.SEQUENCE) || !one.ReadASN1(&public, der.OCTET_STRING) ||
			!one.ReadASN1Integer(&from) || !one.ReadASN1Integer(&to) || !one.Empty() {
			return nil, fmt.Errorf("%w: node keys", ErrExtension)
		}
		p, err := key.ParseNodePublic(public)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrExtension, err)
		}
		if from < 0 || to > maxTime {
			return nil, fmt.Errorf("%w: validity of node key %s", ErrExtension, p)
		}
		keys = append(keys, NodeKey{Public: p, NotBefore: fromUnix(from), NotAfter: fromUnix(to)})
		if len(keys) > maxKeys {
			break
		}
	}
	if err := checkKeys(keys); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrExtension, err)
	}
	return keys, nil
}

func checkKeys(keys []NodeKey) error {
	if len(keys) == 0 || len(keys) > maxKeys {
		return fmt.Errorf("%d node keys, want 1 or %d", len(keys), maxKeys)
	}
	for i, k := range keys {
		if k.Public.IsZero() || !k.NotBefore.Before(k.NotAfter) {
			return fmt.Errorf("node key %s is valid from %s to %s", k.Public, k.NotBefore, k.NotAfter)
		}
		if i > 0 && keys[0].Public == k.Public {
			return fmt.Errorf("node key %s twice", k.Public)
		}
	}
	return nil
}

func parseUser(in cryptobyte.String) (proto.User, error) {
	var u proto.User
	var at int64
	var ok [3]bool
	u.Issuer, ok[0] = readText(&in)
	u.Subject, ok[1] = readText(&in)
	u.Name, ok[2] = readText(&in)
	if ok != [3]bool{true, true, true} || !in.ReadASN1Integer(&at) || !in.Empty() || at < 0 || at > maxTime || u.IsZero() {
		return proto.User{}, fmt.Errorf("%w: user", ErrExtension)
	}
	if at != 0 {
		u.AuthTime = fromUnix(at)
	}
	return u, nil
}

func addText(b *cryptobyte.Builder, s string) {
	b.AddASN1(der.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

func readText(in *cryptobyte.String) (string, bool) {
	var s cryptobyte.String
	ok := in.ReadASN1(&s, der.UTF8String)
	return string(s), ok
}

// unix returns Unix seconds, and 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(s int64) time.Time { return time.Unix(s, 0).UTC() }
