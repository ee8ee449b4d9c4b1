package main

import (
	"fmt"
	"time"
)

// interfaceJSON is a WireGuard interface as `status --interface --json` prints it.
type interfaceJSON struct {
	Name       string              `json:"name"`
	Type       string              `json:"type"`
	PublicKey  string              `json:"publicKey"`
	ListenPort int                 `json:"listenPort"`
	Peers      []interfacePeerJSON `json:"peers"`
}

type interfacePeerJSON struct {
	PublicKey     string     `json:"publicKey"`
	Endpoint      string     `json:"endpoint"`
	LastHandshake *time.Time `json:"lastHandshake"`
	RxBytes       int64      `json:"rxBytes"`
	TxBytes       int64      `json:"txBytes"`
}

// wireguard prints the counters of any WireGuard interface of this machine.
func (f statusFlags) wireguard(p program) error {
	d, err := wireguardDevice(f.wireguardName)
	if err != nil {
		return err
	}
	out := interfaceJSON{
		Name: d.Name, Type: d.Type.String(), PublicKey: d.PublicKey.String(), ListenPort: d.ListenPort, Peers: []interfacePeerJSON{},
	}
	for _, peer := range d.Peers {
		x := interfacePeerJSON{PublicKey: peer.PublicKey.String(), RxBytes: peer.ReceiveBytes, TxBytes: peer.TransmitBytes}
		if peer.Endpoint != nil {
			x.Endpoint = peer.Endpoint.String()
		}
		if !peer.LastHandshakeTime.IsZero() {
			at := peer.LastHandshakeTime.UTC()
			x.LastHandshake = &at
		}
		out.Peers = append(out.Peers, x)
	}
	if *f.json {
		return printJSON(p.out, out)
	}
	c := palette(p.colour)
	fmt.Fprintf(p.out, "%s %s (%s)\n%s %s\n%s %d\n", c.dim("interface "), out.Name, out.Type,
		c.dim("public key"), out.PublicKey, c.dim("UDP port  "), out.ListenPort)
	rows := [][]string{{"PEER", "ENDPOINT", "HANDSHAKE", "RX", "TX"}}
	for _, x := range out.Peers {
		at := time.Time{}
		if x.LastHandshake != nil {
			at = *x.LastHandshake
		}
		rows = append(rows, []string{x.PublicKey, x.Endpoint, age(time.Now(), at), size(uint64(x.RxBytes)), size(uint64(x.TxBytes))})
	}
	fmt.Fprint(p.out, "\n"+table(rows, 0, 1))
	return nil
}
