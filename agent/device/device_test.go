package device

import (
	"crypto/rand"
	"errors"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// memory keeps a key, or fails to.
type memory struct {
	k   key.DevicePrivate
	err error
}

func (m *memory) DeviceKey() (key.DevicePrivate, bool) { return m.k, !m.k.IsZero() }

func (m *memory) SaveDeviceKey(k key.DevicePrivate) error {
	if m.err == nil {
		m.k = k
	}
	return m.err
}

func TestOpen(t *testing.T) {
	m := &memory{}
	first, err := Open(m, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(m, rand.Reader)
	if err != nil || again.Device() != first.Device() || m.k.Device() != first.Device() {
		t.Errorf("another key at the second time: %v", err)
	}
	full := errors.New("disk full")
	if k, err := Open(&memory{err: full}, rand.Reader); !errors.Is(err, full) || k != nil {
		t.Errorf("a key that was not saved was given out: %v", err)
	}
}
