package main

import (
	"errors"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wireguardDevice fails: on FreeBSD it would need cgo, which this program is built without.
func wireguardDevice(string) (*wgtypes.Device, error) {
	return nil, &exitError{exitFalse, errors.New("other WireGuard interfaces cannot be read on FreeBSD yet: use `wg show`")}
}
