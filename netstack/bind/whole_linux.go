package bind

import (
	"errors"

	"golang.org/x/sys/unix"
)

var _ Whole = (*udp)(nil)

// Whole implements Whole.
func (u *udp) Whole(send func() error) error {
	u.wholeMu.Lock()
	defer u.wholeMu.Unlock()
	sockets := u.sockets()
	for i, s := range sockets {
		if err := s.discover(unix.IP_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return errors.Join(err, restore(sockets[:i], u.cuts))
		}
	}
	return errors.Join(send(), restore(sockets, u.cuts))
}

// Fragment implements Whole.
func (u *udp) Fragment() error {
	u.wholeMu.Lock()
	defer u.wholeMu.Unlock()
	if u.cuts {
		return nil
	}
	u.cuts = true
	return restore(u.sockets(), u.cuts)
}

func (u *udp) sockets() (out []*socket) {
	for _, s := range []*socket{u.v4.Load(), u.v6.Load()} {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// restore sets the sockets' normal mode when nobody probes: unfragmented, except for packets known to be too large for the
// path.
func restore(list []*socket, cuts bool) error {
	v4 := unix.IP_PMTUDISC_WANT
	if cuts {
		v4 = unix.IP_PMTUDISC_DONT
	}
	var errs []error
	for _, s := range list {
		errs = append(errs, s.discover(v4, unix.IPV6_PMTUDISC_WANT))
	}
	return errors.Join(errs...)
}

func (s *socket) discover(v4, v6 int) error {
	var err error
	failed := s.file.Do(func(fd uintptr) {
		if s.is6 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v6)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v4)
		}
	})
	return option("MTU_DISCOVER", errors.Join(failed, err))
}
