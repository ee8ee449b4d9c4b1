package wg

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func newKey(t *testing.T) key.NodePublic {
	t.Helper()
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func TestScriptSaysWhatChanged(t *testing.T) {
	k := newKey(t)
	old := PeerConfig{
		ID: 1, Keys: []key.NodePublic{k},
		Addrs:     proto.Addrs{V4: netip.MustParseAddr("100.64.0.1"), V6: netip.MustParseAddr("fd00:1::1")},
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:2")},
	}
	head := "public_key=" + hex.EncodeToString(k.Bytes()) + "\n"
	change := func(f func(*PeerConfig)) PeerConfig {
		cfg := old
		f(&cfg)
		return cfg
	}
	for _, c := range []struct {
		name string
		cfg  PeerConfig
		old  *PeerConfig
		want string
	}{
		{"new", old, nil, "preshared_key=" + strings.Repeat("0", 64) + "\nendpoint=?192.0.2.1:1,[2001:db8::1]:2\n" +
			"replace_allowed_ips=true\nallowed_ip=100.64.0.1/32\nallowed_ip=fd00:1::1/128\npersistent_keepalive_interval=0\n"},
		{"endpoints", change(func(c *PeerConfig) { c.Endpoints = c.Endpoints[:1] }), &old, "update_only=true\nendpoint=?192.0.2.1:1\n"},
		{"keepalive", change(func(c *PeerConfig) { c.Keepalive = 25 * time.Second }), &old, "update_only=true\npersistent_keepalive_interval=25\n"},
		{
			"one family", change(func(c *PeerConfig) { c.Addrs.V4 = netip.Addr{} }), &old,
			"update_only=true\nreplace_allowed_ips=true\nallowed_ip=fd00:1::1/128\n",
		},
		{
			"routes", change(func(c *PeerConfig) { c.Routes = []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")} }), &old,
			"update_only=true\nreplace_allowed_ips=true\nallowed_ip=100.64.0.1/32\nallowed_ip=fd00:1::1/128\nallowed_ip=10.33.0.0/16\n",
		},
	} {
		var s script
		s.set(c.cfg, c.old)
		if d := cmp.Diff(head+c.want, s.String()); d != "" {
			t.Errorf("%s:\n%s", c.name, d)
		}
	}
}

func TestReadState(t *testing.T) {
	one, two := newKey(t), newKey(t)
	st, err := readState(strings.NewReader("private_key=00\nlisten_port=7\n" +
		"public_key=" + hex.EncodeToString(one.Bytes()) + "\nendpoint=192.0.2.1:1\nlast_handshake_time_sec=5\n" +
		"last_handshake_time_nsec=6\nrx_bytes=1\ntx_bytes=2\nunheard_of=1\n" +
		"public_key=" + hex.EncodeToString(two.Bytes()) + "\nendpoint=?192.0.2.1:1\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := st.peers[one], st.peers[two]
	if st.port != 7 || len(st.peers) != 2 || a.Endpoint.Port() != 1 || !a.LastHandshake.Equal(time.Unix(5, 6)) || a.Rx != 1 || a.Tx != 2 {
		t.Errorf("read %+v", st)
	}
	if b.Endpoint.IsValid() || !b.LastHandshake.IsZero() || b.Rx != 0 {
		t.Errorf("the second peer has the first one's: %+v", b)
	}
	secret := strings.Repeat("5e", 32)
	for _, bad := range []string{
		secret, "listen_port=99999\n", "public_key=" + secret[1:] + "\n", "public_key=" + strings.Repeat("00", 32) + "\n",
		"endpoint=x\n", "rx_bytes=-1\n", "last_handshake_time_sec=x\n", strings.Repeat("x", 1<<17),
	} {
		if _, err := readState(strings.NewReader(bad)); err == nil {
			t.Errorf("%.20q: no error", bad)
		} else if strings.Contains(err.Error(), secret[:40]) {
			t.Errorf("the error tells a key: %v", err)
		}
	}
}
