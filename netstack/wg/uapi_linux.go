package wg

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.zx2c4.com/wireguard/ipc"
)

// ServeUAPI serves an engine's state on the socket where wg and wgctrl look for the interface ifname, until the result is
// closed. It is read-only and exposes no secrets.
func ServeUAPI(ifname string, e Engine) (io.Closer, error) {
	if ifname == "" || ifname == "." || ifname == ".." || strings.ContainsAny(ifname, "/\x00") {
		return nil, fmt.Errorf("serve the state of interface %q: that is no name", ifname)
	}
	file, err := ipc.UAPIOpen(ifname)
	if err != nil {
		return nil, fmt.Errorf("serve the state of interface %s: %w", ifname, err)
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("serve the state of interface %s: %w", ifname, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("serve the state of interface %s: not a unix socket", ifname), l.Close())
	}
	u.SetUnlinkOnClose(true)
	return startUAPI(u, e.WriteUAPI), nil
}
