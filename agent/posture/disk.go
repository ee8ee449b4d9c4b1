package posture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// diskEncrypted reports whether what the system keeps on its disks, the root and all swap, is unreadable without a key.
func diskEncrypted(ctx context.Context, h Host) []Reading {
	mounts := mountTable(h.raw("proc/self/mountinfo"))
	root, ok := mounts.at("/")
	if !ok {
		return []Reading{unknown(fact.DiskEncrypted, "cannot read where / is mounted from")}
	}
	d := disks{h, mounts, ctx}
	worst := d.mounted(root)
	notes := []string{"/ " + worst.note}
	swaps, err := h.read("proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // else the kernel has no swap
		return []Reading{unknown(fact.DiskEncrypted, "what the system swaps to: "+err.Error())}
	}
	for _, f := range fields(swaps, 2) {
		if !strings.HasPrefix(f[0], "/") {
			continue // the header line
		}
		v := d.swap(unescape(f[0]), f[1])
		notes = append(notes, "swap "+v.note)
		worst = worse(worst, v)
	}
	note := strings.Join(notes, ", ")
	switch worst.is {
	case inClear:
		return []Reading{yesNo(fact.DiskEncrypted, false, note)}
	case encrypted:
		return []Reading{yesNo(fact.DiskEncrypted, true, note)}
	}
	return []Reading{unknown(fact.DiskEncrypted, note)}
}

// state is how something is stored. A greater one is worse.
type state uint8

const (
	encrypted state = iota
	noOneKnows
	inClear
)

type verdict struct {
	is   state
	note string
}

func worse(a, b verdict) verdict {
	if b.is > a.is {
		return b
	}
	return a
}

// mount is a file system that is mounted.
type mount struct{ device, point, kind, source string }

type mountList []mount

// mountTable parses /proc/self/mountinfo. If several are mounted at the same point, the last one counts.
func mountTable(b []byte) (out mountList) {
	for _, f := range fields(b, 9) {
		for i := 6; i+2 < len(f); i++ {
			if f[i] == "-" {
				out = append(out, mount{device: f[2], point: unescape(f[4]), kind: f[i+1], source: unescape(f[i+2])})
				break
			}
		}
	}
	return out
}

func (l mountList) at(point string) (mount, bool) {
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].point == point {
			return l[i], true
		}
	}
	return mount{}, false
}

// holding returns the mount that a file is on.
func (l mountList) holding(name string) (mount, bool) {
	for {
		name = path.Dir(name)
		if m, ok := l.at(name); ok || name == "/" || name == "." {
			return m, ok
		}
	}
}

// unescape undoes the kernel's escapes of spaces and the like in names: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) >= 0 {
			b.WriteByte(byte(octal(s[i+1 : i+4])))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) int {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '7' {
			return -1
		}
		n = n*8 + int(c-'0')
	}
	if n > 255 {
		return -1
	}
	return n
}

// disks finds out what things are stored on.
type disks struct {
	Host
	mounts mountList
	ctx    context.Context //nolint:containedctx // it lives for one reading
}

func (d disks) mounted(m mount) verdict {
	switch m.kind {
	case "zfs":
		return d.zfs(m.source)
	case "btrfs":
		return d.btrfs(m.source)
	case "overlay", "tmpfs", "nfs", "nfs4", "9p", "virtiofs", "squashfs":
		return verdict{noOneKnows, "is on " + m.kind + ", which is no disk"}
	}
	// Some file systems have a device number of their own, and name the disk.
	if v := d.device("sys/dev/block/"+m.device, 0); v.is != noOneKnows {
		return v
	}
	return d.named(m.source)
}

// btrfs may span several devices, of which the mount names one: the worst of them counts.
func (d disks) btrfs(source string) verdict {
	out := d.named(source)
	name := d.kernelName(source)
	systems, err := fs.Glob(d.Files, "sys/fs/btrfs/*/devices")
	if err != nil || name == "" {
		return out
	}
	for _, dir := range systems {
		if !d.exists(dir + "/" + name) {
			continue
		}
		devices, err := fs.ReadDir(d.Files, dir)
		if err != nil {
			return verdict{noOneKnows, err.Error()}
		}
		for _, e := range devices {
			out = worse(out, d.device("sys/class/block/"+e.Name(), 0))
		}
	}
	return out
}

// named judges a device by its name, such as /dev/mapper/root or /dev/nvme0n1p2.
func (d disks) named(name string) verdict {
	if k := d.kernelName(name); k != "" {
		return d.device("sys/class/block/"+k, 0)
	}
	return verdict{noOneKnows, "is on something unexpected"}
}

// kernelName returns the kernel's name of a device, such as dm-0; empty if the name is not understood.
func (d disks) kernelName(name string) string {
	base, ok := strings.CutPrefix(name, "/dev/")
	if !ok || strings.Contains(base, "..") {
		return ""
	}
	mapped, ok := strings.CutPrefix(base, "mapper/")
	if !ok {
		return base
	}
	found, err := fs.Glob(d.Files, "sys/class/block/dm-*")
	if err != nil {
		return "" // cannot happen: the pattern is constant
	}
	for _, dir := range found {
		if d.text(dir+"/dm/name") == mapped {
			return path.Base(dir)
		}
	}
	return ""
}

// maxLayers is how many devices may be stacked on one another: LUKS on LVM on RAID.
const maxLayers = 8

// device judges a block device by its directory below /sys. If it is stacked on others, the worst of them counts.
func (d disks) device(dir string, layer int) verdict {
	name, uuid := d.text(dir+"/dm/name"), d.text(dir+"/dm/uuid")
	mapped := name != ""
	if !mapped {
		name = path.Base(dir)
		for line := range strings.Lines(d.text(dir + "/uevent")) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				name = v
			}
		}
	}
	switch {
	case ciphered(uuid):
		return verdict{encrypted, "is on " + name + ", dm-crypt"}
	case !mapped && strings.HasPrefix(name, "zram"):
		if back := d.text(dir + "/backing_dev"); back != "" && back != "none" {
			return verdict{noOneKnows, "is in memory, of which some goes to " + back}
		}
		return verdict{encrypted, "is in memory"}
	case layer >= maxLayers || !d.exists(dir):
		return verdict{noOneKnows, "is on an unknown device"}
	}
	below, err := fs.ReadDir(d.Files, dir+"/slaves")
	if err != nil || len(below) == 0 {
		return verdict{inClear, "is on " + name + " unencrypted"}
	}
	out := verdict{is: encrypted}
	for _, e := range below {
		if v := d.device(dir+"/slaves/"+e.Name(), layer+1); out.note == "" || v.is > out.is {
			out = v
		}
	}
	return out
}

// ciphered reports whether a device is a dm-crypt one, by its UUID. Cryptsetup gives similar UUIDs to dm-verity and
// dm-integrity devices, which do not encrypt.
func ciphered(uuid string) bool {
	kind, crypt := strings.CutPrefix(uuid, "CRYPT-")
	kind, _, _ = strings.Cut(kind, "-")
	switch kind {
	case "LUKS1", "LUKS2", "PLAIN", "BITLK", "FVAULT2", "TCRYPT", "LOOPAES":
		return crypt
	}
	return false
}

func (d disks) swap(name, kind string) verdict {
	if kind != "file" {
		return d.named(name)
	}
	m, ok := d.mounts.holding(name)
	if !ok {
		return verdict{noOneKnows, fmt.Sprintf("%s is on an unknown disk", name)}
	}
	return d.mounted(m)
}

// zfs judges a ZFS dataset.
func (d disks) zfs(dataset string) verdict {
	if dataset == "" || strings.HasPrefix(dataset, "-") {
		return verdict{noOneKnows, "is on a dataset of ZFS without a name"}
	}
	b, err := d.Run(d.ctx, "zfs", "get", "-H", "-o", "value", "encryption", dataset)
	switch v := strings.TrimSpace(string(b)); {
	case err != nil:
		return verdict{noOneKnows, err.Error()}
	case v == "off":
		return verdict{inClear, "is on ZFS unencrypted"}
	case strings.HasPrefix(v, "aes-"):
		return verdict{encrypted, "is on ZFS, " + v}
	}
	return verdict{noOneKnows, "is on ZFS, which says something unexpected"}
}
