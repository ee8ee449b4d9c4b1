package proto

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version orders what a coordinator sends. N grows with every change; Epoch grows when a backup is restored, so that nothing
// sent after the restore is older than what was sent before it.
type Version struct {
	Epoch, N uint64
}

// Compare returns -1, 0 or +1.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Epoch, w.Epoch), cmp.Compare(v.N, w.N))
}

// Less reports whether v came before w.
func (v Version) Less(w Version) bool { return v.Compare(w) < 0 }

// IsZero reports whether there is no version yet.
func (v Version) IsZero() bool { return v == Version{} }

// String returns "epoch.n".
func (v Version) String() string {
	return strconv.FormatUint(v.Epoch, 10) + "." + strconv.FormatUint(v.N, 10)
}

// MarshalText implements encoding.TextMarshaler.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Version) UnmarshalText(b []byte) error {
	w, err := ParseVersion(string(b))
	if err == nil {
		*v = w
	}
	return err
}

// ParseVersion parses "epoch.n".
func ParseVersion(s string) (Version, error) {
	e, n, ok := strings.Cut(s, ".")
	epoch, err1 := strconv.ParseUint(e, 10, 64)
	num, err2 := strconv.ParseUint(n, 10, 64)
	v := Version{epoch, num}
	if !ok || err1 != nil || err2 != nil || v.String() != s {
		return Version{}, fmt.Errorf("version %q: want EPOCH.N", shorten(s))
	}
	return v, nil
}
