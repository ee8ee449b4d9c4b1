package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// open lets everything through the filter, which still checks each packet.
const open = `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`

// rawPair returns two hosts connected by a cable.
func rawPair() (*pair, error) {
	w, a, b, err := twoHosts()
	if err != nil {
		return nil, err
	}
	return &pair{name: "raw veth", hosts: [2]*lab.Host{a, b}, addrs: [2]netip.Addr{a.V4(), b.V4()}, close: w.Close}, nil
}

func twoHosts() (w *lab.World, a, b *lab.Host, err error) {
	if w, err = lab.New(); err != nil {
		return nil, nil, nil, err
	}
	l, err := w.LAN("lan")
	if err == nil {
		a, err = w.AddHost("a", l)
	}
	if err == nil {
		b, err = w.AddHost("b", l)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, w.Close())
	}
	return w, a, b, nil
}

// stockPair returns two hosts connected by wireguard-go.
func stockPair(ctx context.Context, bin string) (*pair, error) {
	w, a, b, err := twoHosts()
	if err != nil {
		return nil, err
	}
	p := &pair{
		name: "wireguard-go", hosts: [2]*lab.Host{a, b}, close: w.Close,
		addrs: [2]netip.Addr{netip.MustParseAddr("10.200.0.1"), netip.MustParseAddr("10.200.0.2")},
	}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	for i, h := range []*lab.Host{a, b} {
		far := []*lab.Host{b, a}[i]
		pid, err := startStock(ctx, bin, h, keys[i], keys[1-i].PublicKey(), i, far.V4())
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		p.pids = append(p.pids, pid)
	}
	p.world, p.at = w, netip.AddrPortFrom(b.V4(), 51820)
	if p.key, err = key.ParseNodePublic(keys[1].PublicKey().Bytes()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return p, nil
}

func startStock(ctx context.Context, bin string, h *lab.Host, own *ecdh.PrivateKey, peer *ecdh.PublicKey, i int, far netip.Addr) (int, error) {
	path, err := filepath.Abs(filepath.Join(bin, "wireguard-go"))
	if err != nil {
		return 0, err
	}
	d, err := h.Start(lab.Command{Path: path, Args: []string{"-f", "wg0"}, Env: []string{"LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1"}})
	if err != nil {
		return 0, err
	}
	config := fmt.Sprintf("set=1\nprivate_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s\nallowed_ip=10.200.0.%d/32\n\n",
		hex.EncodeToString(own.Bytes()), hex.EncodeToString(peer.Bytes()), netip.AddrPortFrom(far, 51820), 2-i)
	if err := uapi(ctx, filepath.Join(h.RunDir, "wireguard", "wg0.sock"), config); err != nil {
		return 0, fmt.Errorf("configure wireguard-go: %w\n%s", err, d.Output())
	}
	rt := h.Netlink()
	link, err := rt.LinkByName("wg0")
	if err != nil {
		return 0, err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 200, 0, byte(1+i)), Mask: net.CIDRMask(24, 32)}}
	return d.PID(), errors.Join(rt.LinkSetMTU(link, 1420), rt.AddrAdd(link, addr), rt.LinkSetUp(link))
}

// uapi configures a WireGuard device through its socket, as soon as that exists.
func uapi(ctx context.Context, socket, config string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(20 * time.Millisecond):
				continue
			}
		}
		defer c.Close()
		if _, err := c.Write([]byte(config)); err != nil {
			return err
		}
		buf := make([]byte, 128)
		n, err := c.Read(buf)
		if err == nil && !strings.Contains(string(buf[:n]), "errno=0") {
			err = fmt.Errorf("it answered %q", buf[:n])
		}
		return err
	}
}

// redoubtPair returns two nodes of a mesh.
func redoubtPair(ctx context.Context, bin, name string) (*pair, error) {
	m, err := mesh.New(bin)
	if err != nil {
		return nil, err
	}
	a, b, err := twoNodes(ctx, m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	p := &pair{
		name: name, hosts: [2]*lab.Host{a.Host, b.Host}, pids: []int{a.Agent.PID(), b.Agent.PID()}, close: m.Close, world: m.World,
	}
	for i, n := range []*mesh.Node{a, b} {
		st, err := n.Status(ctx)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		p.addrs[i] = st.V4()
		if n != b {
			continue
		}
		p.at = netip.AddrPortFrom(b.Host.V4(), st.ListenPort)
		if p.key, err = key.ParseNodePublicText(st.WireGuard.Keys[0].PublicKey); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return p, nil
}

func twoNodes(ctx context.Context, m *mesh.Mesh) (a, b *mesh.Node, err error) {
	if err := m.StartCoordinator(ctx); err != nil {
		return nil, nil, err
	}
	if _, err := m.Apply(ctx, open); err != nil {
		return nil, nil, err
	}
	if a, err = join(ctx, m, "a"); err != nil {
		return nil, nil, err
	}
	b, err = join(ctx, m, "b")
	return a, b, err
}

func join(ctx context.Context, m *mesh.Mesh, name string) (*mesh.Node, error) {
	n, err := m.AddNode(ctx, name)
	if err != nil {
		return nil, err
	}
	return n, up(ctx, m, n)
}

// up makes a node join.
func up(ctx context.Context, m *mesh.Mesh, n *mesh.Node) error {
	code, err := m.Token(ctx, "--user", "ann@example.com")
	if err != nil {
		return err
	}
	_, err = n.Up(ctx, code)
	return err
}
