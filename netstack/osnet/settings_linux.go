package osnet

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setting is a kernel setting of a network namespace, by its path below /proc/sys.
type setting struct{ name, value string }

func (s setting) String() string { return s.name + "=" + s.value }

// parseSetting parses a note. It accepts only what we could have written.
func parseSetting(text string) (setting, bool) {
	name, value, ok := strings.Cut(text, "=")
	known := slices.Contains(settingNames, name)
	if rest, is := strings.CutPrefix(name, perDevice); is && !known {
		var device string
		device, known = strings.CutSuffix(rest, acceptRA)
		known = known && device != "" && !strings.Contains(device, "/") && device != ".."
	}
	return setting{name, value}, ok && known && digits(value) && value != ""
}

const (
	forward4  = "net/ipv4/ip_forward"
	forward6  = "net/ipv6/conf/all/forwarding"
	validMark = "net/ipv4/conf/all/src_valid_mark"
	// Whether a device accepts router advertisements: its name goes in between.
	perDevice, acceptRA = "net/ipv6/conf/", "/accept_ra"
)

var settingNames = []string{forward4, forward6, validMark}

// settings are the kernel's, in the namespace of the thread that opened them: a path depends on the thread's namespace, an open
// file does not.
type settings struct {
	files map[string]*os.File
	errs  map[string]error
}

func newSettings() *settings {
	s := &settings{files: map[string]*os.File{}, errs: map[string]error{}}
	for _, name := range settingNames {
		s.open(name)
	}
	return s
}

// open must be called from a thread in the namespace. A setting that cannot be opened fails when it is used.
func (s *settings) open(name string) {
	if s.files[name] != nil {
		return
	}
	f, err := os.OpenFile("/proc/sys/"+name, os.O_RDWR, 0)
	if err != nil {
		s.errs[name] = err
		return
	}
	s.files[name] = f
	delete(s.errs, name)
}

func (s *settings) file(name string) (*os.File, error) {
	if f := s.files[name]; f != nil {
		return f, nil
	}
	if err := s.errs[name]; err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("/proc/sys/%s: %w", name, os.ErrNotExist)
}

func (s *settings) get(name string) (string, error) {
	f, err := s.file(name)
	if err != nil {
		return "", err
	}
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(string(b[:n])), nil
}

func (s *settings) set(x setting) error {
	f, err := s.file(x.name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(x.value+"\n"), 0)
	return err
}

func (s *settings) close() {
	for _, f := range s.files {
		_ = f.Close() // nothing is buffered
	}
	s.files = nil
}

// wantedSettings returns the settings that a config needs, in the order to apply them. A host that forwards IPv6 ignores router
// advertisements unless told otherwise: if its default route comes from one, it would lose it.
func (h *Host) wantedSettings(c Config) (out []setting) {
	if c.Exit.On {
		out = append(out, setting{validMark, "1"})
	}
	if c.Serve.serves(true) {
		out = append(out, setting{forward4, "1"})
	}
	if c.Serve.serves(false) {
		var listen []string
		for _, s := range h.notes {
			if strings.HasSuffix(s.name, acceptRA) {
				listen = append(listen, s.name) // still, even if the route is gone for a moment
			}
		}
		for _, device := range h.advertised() {
			name := perDevice + device + acceptRA
			if v, err := h.settings.get(name); err == nil && v == "1" && !slices.Contains(listen, name) {
				listen = append(listen, name)
			}
		}
		for _, name := range listen {
			out = append(out, setting{name, "2"})
		}
		out = append(out, setting{forward6, "1"})
	}
	return out
}

// advertised returns the devices with a default route from router advertisements.
func (h *Host) advertised() (out []string) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.rt.RouteList(nil, unix.AF_INET6) })
	if err != nil {
		return nil
	}
	for _, r := range routes {
		if p := prefixOf(r.Dst); r.Protocol != unix.RTPROT_RA || p.IsValid() && p.Bits() > 0 {
			continue
		}
		if link, err := h.rt.LinkByIndex(r.LinkIndex); err == nil && !slices.Contains(out, link.Attrs().Name) {
			out = append(out, link.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out
}

// openSettings opens the settings that differ from host to host. It must be called from a thread in the namespace.
func (h *Host) openSettings() {
	for _, device := range h.advertised() {
		h.settings.open(perDevice + device + acceptRA)
	}
	for _, s := range h.notes {
		h.settings.open(s.name)
	}
}

// note records a setting's value from before it was first changed.
func (h *Host) note(s setting) {
	if !slices.ContainsFunc(h.notes, func(n setting) bool { return n.name == s.name }) {
		h.notes = append(h.notes, s)
	}
}

// adopt takes over the notes of a device's guard.
func (h *Host) adopt(device string) error {
	notes, err := h.guard.notes(device)
	for _, s := range notes {
		h.settings.open(s.name)
		h.note(s)
	}
	return err
}

// putBack restores the previous values of settings that are no longer wanted, in reverse order.
func (h *Host) putBack(wanted []setting) error {
	var errs []error
	var left []setting
	for _, s := range slices.Backward(h.notes) {
		if slices.ContainsFunc(wanted, func(w setting) bool { return w.name == s.name }) {
			left = append(left, s)
			continue
		}
		err := h.settings.set(s)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // it disappeared with its device
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s back to %s: %w", s.name, s.value, err))
			left = append(left, s)
		}
	}
	slices.Reverse(left)
	h.notes = left
	return errors.Join(errs...)
}

// make applies the wanted settings. The guard has already noted their previous values.
func (h *Host) make(wanted []setting) error {
	var errs []error
	for _, s := range wanted {
		now, err := h.settings.get(s.name)
		if err == nil && now != s.value {
			err = h.settings.set(s)
		}
		if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) && strings.HasSuffix(s.name, acceptRA) {
			continue // it disappeared with its device
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(s.name, "/", "."), s.value, err))
		}
	}
	return errors.Join(errs...)
}

// dutyOf returns the guard's duty for a config.
func (h *Host) dutyOf(c Config) duty {
	d := duty{serve: outermost(c.Serve.Routes), mark: c.Exit.On, notes: slices.Clone(h.notes)}
	if len(d.serve) > 0 {
		d.snat, d.mtu = c.Serve.SNAT, c.MTU
	}
	return d
}

// setGuard sets the guard with all its duties. If the kernel does not support those, it still guards the host, and records a
// problem that says what does not work.
func (h *Host) setGuard(c Config) error {
	wanted := h.wantedSettings(c)
	if err := h.putBack(wanted); err != nil {
		h.problem("%v", err)
	}
	for _, s := range wanted {
		if now, err := h.settings.get(s.name); err == nil && now != s.value {
			h.note(setting{s.name, now})
		}
	}
	mine := instanceOf(c)
	d := h.dutyOf(c)
	whole, err := h.guard.whole(mine, d)
	if err == nil && !whole {
		if err = h.guard.set(mine, d); err != nil && (len(d.serve) > 0 || d.mark) {
			h.problem("this host leads nothing on, neither for the mesh nor by an exit node's marks: %v; load the modules "+
				"nft_masq, nft_ct and nft_exthdr, or run a kernel with them", err)
			wanted = nil
			err = h.guardOnly(mine, d.notes)
		}
	}
	if err != nil {
		return err
	}
	if err := h.make(wanted); err != nil {
		h.problem("this host does not forward all that it serves, or drops what comes back to an exit node's user: %v; run "+
			"`sysctl -w` for it, or give the agent the right to", err)
	}
	if len(d.serve) == 0 {
		return nil
	}
	blocks, err := h.guard.blocks(c.Interface)
	for _, chain := range blocks {
		h.problem("this host's firewall drops what is forwarded (nftables' chain %s), and names %s nowhere: let in what comes from it and "+
			"goes to it, for instance by `iptables -I FORWARD -i %[2]s -j ACCEPT` and the same with -o", chain, c.Interface)
	}
	if err != nil {
		// Others' rules may be of kinds that we cannot parse. Nothing but the problem above depends on them.
		h.log.Debug("this host's firewall not understood", "err", err)
	}
	return nil
}

// guardOnly sets the guard without duties, unless it is in place: every change of nftables wakes the keeper, so to set it each
// time would never end. A transaction that the kernel rejected changes nothing, so all duties may be tried each time.
func (h *Host) guardOnly(i instance, notes []setting) error {
	d := duty{notes: notes}
	whole, err := h.guard.whole(i, d)
	if err != nil || whole {
		return err
	}
	return h.guard.set(i, d)
}

// nearer returns the networks that this host is on and continues to reach without the mesh.
func (h *Host) nearer(c Config) ([]netip.Prefix, error) {
	if !c.leads() {
		return nil, nil
	}
	own, err := h.addressesBeside(c.Interface)
	if err != nil {
		return nil, err
	}
	spared, shadowed := c.spared(own)
	for _, p := range shadowed {
		h.problem("this host is in the network %v itself: the route through the mesh to it is not used", p)
	}
	servers, err := h.nameServers()
	if err != nil {
		return nil, err
	}
	for _, s := range c.unreachable(servers) {
		h.problem("the DNS server %v is not reached while an exit node is used, since its address is a private one: name a public server, or "+
			"say --exit-node-allow-lan", s)
	}
	return spared, nil
}
