package key

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// ErrSealed is what marshalling a private key returns.
var ErrSealed = errors.New("private keys are not marshalled")

// redacted stands wherever a private key would have been printed.
const redacted = "[secret]"

// sealed is embedded by private types: it shadows every way by which a value comes to be printed or stored.
type sealed struct{}

// Format implements fmt.Formatter for all verbs and flags.
func (sealed) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String implements fmt.Stringer.
func (sealed) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (sealed) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (sealed) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON refuses.
func (sealed) MarshalJSON() ([]byte, error) { return nil, ErrSealed }

// MarshalText refuses.
func (sealed) MarshalText() ([]byte, error) { return nil, ErrSealed }

// MarshalBinary refuses; encoding/gob asks it too.
func (sealed) MarshalBinary() ([]byte, error) { return nil, ErrSealed }
