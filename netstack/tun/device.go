package tun

import "golang.zx2c4.com/wireguard/tun"

// Device is a TUN device, as the WireGuard engine uses it.
type Device = tun.Device

// Event is what happens to a Device: up, down, another MTU.
type Event = tun.Event

// The events of a Device.
const (
	EventUp        = tun.EventUp
	EventDown      = tun.EventDown
	EventMTUUpdate = tun.EventMTUUpdate
)

// DefaultMTU is the inner MTU where nothing says otherwise: what a 1500 byte underlay leaves, with IPv6 outside.
const DefaultMTU = 1420

// Unwrap gives the device below all that was put around it.
func Unwrap(d Device) Device {
	for {
		w, ok := d.(interface{ Unwrap() Device })
		if !ok {
			return d
		}
		d = w.Unwrap()
	}
}
