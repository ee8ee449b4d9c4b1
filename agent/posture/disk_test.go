package posture

import (
	"maps"
	"strings"
	"testing"
)

// luks is a laptop as installers set it up: LVM on LUKS on the second partition.
func luks(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{
		"/proc/self/mountinfo": recorded(t, "mountinfo-luks.txt"),
		"/proc/swaps":          "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-2                               partition\t999420\t\t0\t\t-2\n",
	}
	crypt := map[string]string{"dm/name": "nvme0n1p3_crypt", "dm/uuid": "CRYPT-LUKS2-0123456789abcdef-nvme0n1p3_crypt", "slaves/nvme0n1p3/uevent": "DEVNAME=nvme0n1p3"}
	for _, at := range []struct{ dir, name, uuid string }{
		{"/sys/dev/block/253:1/", "vg-root", "LVM-abc"}, {"/sys/class/block/dm-2/", "vg-swap", "LVM-def"},
	} {
		files[at.dir+"dm/name"], files[at.dir+"dm/uuid"] = at.name+"\n", at.uuid+"\n"
		for name, text := range crypt {
			files[at.dir+"slaves/dm-0/"+name] = text
		}
	}
	return files
}

func with(files, more map[string]string) map[string]string {
	out := maps.Clone(files)
	maps.Copy(out, more)
	return out
}

func TestDisk(t *testing.T) {
	plain := map[string]string{
		"/proc/self/mountinfo":                  recorded(t, "mountinfo-plain.txt"),
		"/sys/dev/block/8:2/uevent":             "MAJOR=8\nMINOR=2\nDEVNAME=sda2\nDEVTYPE=partition\n",
		"/sys/class/block/zram0/uevent":         "DEVNAME=zram0\n",
		"/sys/dev/block/9:0/slaves/sda1/uevent": "DEVNAME=sda1\n",
	}
	btrfs := map[string]string{
		"/proc/self/mountinfo":                          recorded(t, "mountinfo-btrfs.txt"),
		"/sys/class/block/dm-0/dm/name":                 "luks-2f1c\n",
		"/sys/class/block/dm-0/dm/uuid":                 "CRYPT-LUKS2-2f1c-luks-2f1c\n",
		"/sys/class/block/dm-0/slaves/nvme0n1p3/uevent": "DEVNAME=nvme0n1p3\n",
		"/proc/swaps":                                   "Filename Type Size Used Priority\n/dev/zram0 partition 8388604 0 100\n",
		"/sys/class/block/zram0/uevent":                 "DEVNAME=zram0\n",
	}
	mixed := luks(t)
	mixed["/sys/dev/block/253:1/slaves/sdb1/uevent"] = "DEVNAME=sdb1\n"
	zfs := map[string]string{"/proc/self/mountinfo": recorded(t, "mountinfo-zfs.txt")}
	const askZFS = "zfs get -H -o value encryption rpool/ROOT/debian"
	for name, c := range map[string]struct {
		files, programs map[string]string
		want            string
	}{
		"LVM on LUKS (Debian)":         {luks(t), nil, "true"},
		"swap unencrypted":             {with(luks(t), map[string]string{"/proc/swaps": "/dev/sda3 partition 1 0 -2\n", "/sys/class/block/sda3/uevent": "DEVNAME=sda3\n"}), nil, "false"},
		"swap in a file on the root":   {with(luks(t), map[string]string{"/proc/swaps": "/swap\\040file file 1 0 -2\n"}), nil, "true"},
		"swap in a file on another":    {with(luks(t), map[string]string{"/proc/swaps": "/boot/swapfile file 1 0 -2\n", "/sys/dev/block/259:2/uevent": "DEVNAME=nvme0n1p2\n"}), nil, "false"},
		"swap on something strange":    {with(luks(t), map[string]string{"/proc/swaps": "/dev/../etc/passwd partition 1 0 -2\n"}), nil, "-"},
		"one of two disks unencrypted": {mixed, nil, "false"},
		"plain":                        {plain, nil, "false"},
		"btrfs on LUKS, zram (Fedora)": {btrfs, nil, "true"},
		"btrfs on a device not known":  {with(btrfs, map[string]string{"/sys/class/block/dm-0/dm/name": "other"}), nil, "-"},
		"btrfs on a second disk unencrypted": {with(btrfs, map[string]string{
			"/sys/fs/btrfs/2f1c/devices/dm-0/x": "", "/sys/fs/btrfs/2f1c/devices/sdb1/x": "", "/sys/class/block/sdb1/uevent": "DEVNAME=sdb1\n",
		}), nil, "false"},
		"another btrfs unencrypted": {with(btrfs, map[string]string{
			"/sys/fs/btrfs/9999/devices/sdb1/x": "", "/sys/class/block/sdb1/uevent": "DEVNAME=sdb1\n",
		}), nil, "true"},
		"zram that writes to a disk": {with(btrfs, map[string]string{"/sys/class/block/zram0/backing_dev": "/dev/sda9\n"}), nil, "-"},
		"a volume called zram":       {with(plain, map[string]string{"/sys/dev/block/8:2/dm/name": "zram-root\n", "/sys/dev/block/8:2/dm/uuid": "LVM-x\n"}), nil, "false"},
		"dm-verity": {with(plain, map[string]string{
			"/sys/dev/block/8:2/dm/name": "root\n", "/sys/dev/block/8:2/dm/uuid": "CRYPT-VERITY-abc-root\n", "/sys/dev/block/8:2/slaves/sda3/uevent": "DEVNAME=sda3\n",
		}), nil, "false"},
		"dm-verity on LUKS": {with(plain, map[string]string{
			"/sys/dev/block/8:2/dm/name": "root\n", "/sys/dev/block/8:2/dm/uuid": "CRYPT-VERITY-abc-root\n",
			"/sys/dev/block/8:2/slaves/dm-1/dm/name": "luks\n", "/sys/dev/block/8:2/slaves/dm-1/dm/uuid": "CRYPT-LUKS2-abc-luks\n",
		}), nil, "true"},
		"swap that cannot be read": {with(luks(t), map[string]string{"/proc/swaps": strings.Repeat(" ", maxFile+1)}), nil, "-"},
		"ZFS, encrypted":           {zfs, map[string]string{askZFS: "aes-256-gcm\n"}, "true"},
		"ZFS unencrypted":          {zfs, map[string]string{askZFS: "off\n"}, "false"},
		"ZFS says nothing":         {zfs, nil, "-"},
		"ZFS says nonsense":        {zfs, map[string]string{askZFS: "?"}, "-"},
		"a container":              {map[string]string{"/proc/self/mountinfo": "21 1 0:50 / / rw,relatime - overlay overlay rw\n"}, nil, "-"},
		"nothing can be read":      {nil, nil, "-"},
	} {
		if got := values(diskEncrypted(t.Context(), machine(c.files, c.programs))); got != "diskEncrypted="+c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestDevicesInACircle checks that a device stacked on itself, which no kernel has, does not loop forever.
func TestDevicesInACircle(t *testing.T) {
	files := map[string]string{"/proc/self/mountinfo": "21 1 253:1 / / rw - ext4 /dev/dm-1 rw\n"}
	dir := "/sys/dev/block/253:1"
	for range 2 * maxLayers {
		dir += "/slaves/dm-1"
		files[dir+"/uevent"] = ""
	}
	if got := values(diskEncrypted(t.Context(), machine(files, nil))); got != "diskEncrypted=-" {
		t.Error(got)
	}
}

func FuzzDisk(f *testing.F) {
	for _, name := range []string{"mountinfo-luks.txt", "mountinfo-plain.txt", "mountinfo-btrfs.txt", "mountinfo-zfs.txt"} {
		f.Add(recorded(f, name), "/dev/dm-2 partition 999420 0 -2\n/swap\\040file file 1 0 -2\n", "CRYPT-LUKS2-x", "off")
	}
	f.Fuzz(func(t *testing.T, mounts, swaps, uuid, zfs string) {
		files := luks(t)
		files["/proc/self/mountinfo"], files["/proc/swaps"] = mounts, swaps
		files["/sys/dev/block/253:1/slaves/dm-0/dm/uuid"] = uuid
		sound(t, diskEncrypted(t.Context(), machine(files, map[string]string{"zfs get -H -o value encryption rpool/ROOT/debian": zfs}))...)
	})
}
