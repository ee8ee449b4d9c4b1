package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

const nginxConf = `
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  server {
    listen 443 ssl;
    ssl_certificate %[1]s/cert.pem;
    ssl_certificate_key %[1]s/key.pem;
    location / {
      proxy_pass %[2]s;
      proxy_ssl_protocols TLSv1.3;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_read_timeout 1h;
    }
  }
}
`

// gate is a host with the two kinds of proxy that companies use: one that forwards connections on request, and one that
// terminates TLS.
func (r *rig) gate(h *lab.Host) {
	r.Helper()
	dir := r.TempDir()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"gate"}, IPAddresses: []net.IP{h.V4().AsSlice()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		r.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		r.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"cert.pem":   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"key.pem":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		"nginx.conf": fmt.Appendf(nil, nginxConf, dir, r.URL()),
		"tiny.conf":  []byte("Port 8888\nTimeout 3600\nConnectPort 443\nMaxClients 20\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			r.Fatal(err)
		}
	}
	for _, c := range []lab.Command{
		{Path: "nginx", Args: []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}},
		{Path: "tinyproxy", Args: []string{"-d", "-c", filepath.Join(dir, "tiny.conf")}},
	} {
		p, err := h.Start(c)
		if err != nil {
			r.Fatal(err)
		}
		r.processes = append(r.processes, p)
	}
}

// walled returns a host that cannot reach the coordinator directly.
func (r *rig) walled(name string) *lab.Host {
	r.Helper()
	h, err := r.World.AddHost(name, r.LAN)
	if err != nil {
		r.Fatal(err)
	}
	for _, a := range []net.IP{r.VM.V4().AsSlice(), r.VM.V6().AsSlice()} {
		to := &net.IPNet{IP: a, Mask: net.CIDRMask(8*len(a), 8*len(a))}
		if err := h.Netlink().RouteAdd(&netlink.Route{Dst: to, Type: unix.RTN_UNREACHABLE}); err != nil {
			r.Fatal(err)
		}
	}
	return h
}

// TestThroughProxies lets machines join that reach the coordinator only through a proxy: one asks tinyproxy for a connection,
// the other uses an nginx that terminates TLS, which is the second of the coordinator's addresses.
func TestThroughProxies(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"nginx", "tinyproxy"} {
		_, err := exec.LookPath(program)
		if err != nil {
			err = fmt.Errorf("%s is not installed (apt-get install nginx-light tinyproxy)", program)
		}
		labtest.Installed(t, err)
	}
	r := emptyRig(t)
	host, err := r.World.AddHost("gate", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	front := "https://" + host.V4().String()
	r.startCoordinator("--url", front)
	r.gate(host)
	r.apply(`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:*"]}]}`)

	asks := &member{Node: r.NodeOn(r.walled("asks")), r: r}
	r.members = append(r.members, asks)
	proxy := "http://" + host.V4().String() + ":8888"
	if _, err := asks.Launch(lab.Command{Env: []string{"HTTPS_PROXY=" + proxy, "NO_PROXY=" + host.V4().String()}}); err != nil {
		t.Fatal(err)
	}
	r.await("an agent with a proxy", func() error { _, err := asks.Status(r.ctx); return err })
	asks.join(r.token("--user", "ann@example.com"))
	behind := r.agentOn(r.walled("behind"))
	behind.join(r.token("--user", "ann@example.com"))
	r.settle()
	if _, err := asks.Host.Ping(r.ctx, behind.v4); err != nil {
		t.Errorf("two machines behind proxies: %v", err)
	}
	for _, c := range []struct {
		m   *member
		url string
	}{{asks, r.URL()}, {behind, front}} {
		c.m.awaitStatus("a stream", func(s mesh.Status) bool { return s.Coordinator.Connected })
		if out := c.m.do("status"); !strings.Contains(out, "connected  "+strings.TrimSuffix(c.url, ":443")) {
			t.Errorf("%s is connected otherwise:\n%s", c.m.Name, out)
		}
	}
}

// TestNameWithDeadIPv6 joins with a name that has two addresses, of which the IPv6 address is a black hole.
func TestNameWithDeadIPv6(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	const name = "coordinator.example.com"
	alive, dead := r.VM.V4().AsSlice(), r.VM.V6().As16()
	alive[3], dead[15] = 250, 250
	vm, err := r.VM.Netlink().LinkByName(r.VM.Ports[0].Device)
	if err == nil {
		err = r.VM.Netlink().AddrAdd(vm, &netlink.Addr{IPNet: &net.IPNet{IP: alive, Mask: net.CIDRMask(r.LAN.V4.Bits(), 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	r.startCoordinator("--url", "https://"+name)
	r.apply(open)
	h := r.walled("a")
	own, err := h.Netlink().LinkByName(h.Ports[0].Device)
	if err == nil { // a neighbour that does not exist
		err = h.Netlink().NeighAdd(&netlink.Neigh{
			LinkIndex: own.Attrs().Index, State: unix.NUD_PERMANENT, IP: dead[:], HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 250},
		})
	}
	etc := t.TempDir()
	names := fmt.Sprintf("%s %s\n%s %s\n", net.IP(dead[:]), name, net.IP(alive), name)
	if err := errors.Join(err, os.WriteFile(filepath.Join(etc, "hosts"), []byte(names), 0o600)); err != nil {
		t.Fatal(err)
	}
	h.Mounts = map[string]string{"/etc": etc}
	a := r.agentOn(h)
	a.join(r.token("--user", "ann@example.com"))
	a.awaitStatus("a stream", func(s mesh.Status) bool { return s.Coordinator.Connected })
	if out := a.do("status"); !strings.Contains(out, "connected  https://"+name) {
		t.Errorf("a is connected otherwise:\n%s", out)
	}
}
