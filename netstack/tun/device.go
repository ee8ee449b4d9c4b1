package tun

import "golang.zx2c4.com/wireguard/tun"

// Device is a TUN device as the WireGuard engine uses it.
type Device = tun.Device

// Event is an event of a Device: up, down, or an MTU change.
type Event = tun.Event

// The events of a Device.
const (
	EventUp        = tun.EventUp
	EventDown      = tun.EventDown
	EventMTUUpdate = tun.EventMTUUpdate
)

// DefaultMTU is the default inner MTU: what remains of a 1500-byte underlay with IPv6 outside.
const DefaultMTU = 1420

// Unwrap returns the innermost device beneath all wrappers.
func Unwrap(d Device) Device {
	for {
		w, ok := d.(interface{ Unwrap() Device })
		if !ok {
			return d
		}
		d = w.Unwrap()
	}
}
