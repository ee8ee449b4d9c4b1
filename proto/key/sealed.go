package key

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// ErrSealed is the error of marshalling a private key.
var ErrSealed = errors.New("private keys are not marshalled")

// redacted is printed in place of a private key.
const redacted = "[secret]"

// sealed is embedded in private types: it shadows every method by which a value is printed or stored.
type sealed struct{}

// Format implements fmt.Formatter for all verbs and flags.
func (sealed) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String implements fmt.Stringer.
func (sealed) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (sealed) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (sealed) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns ErrSealed.
func (sealed) MarshalJSON() ([]byte, error) { return nil, ErrSealed }

// MarshalText returns ErrSealed.
func (sealed) MarshalText() ([]byte, error) { return nil, ErrSealed }

// MarshalBinary returns ErrSealed; encoding/gob calls it too.
func (sealed) MarshalBinary() ([]byte, error) { return nil, ErrSealed }
