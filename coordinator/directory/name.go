package directory

import (
	"strconv"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

const maxLabel = 63

// reservedLabels are names that a node must not have because programs look them up and trust the answer, or because the mesh
// may want them for itself. A machine with such a host name gets a number appended.
var reservedLabels = map[string]bool{
	"localhost": true, "broadcasthost": true, "wpad": true, "isatap": true,
	"coordinator": true, "relay": true, "dns": true, "ns": true, "mesh": true, "gateway": true,
}

func labelByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
}

// label derives a DNS label from a host name: its first label, in lower case, with other characters replaced by '-', which
// neither repeats (so that no name looks like punycode) nor stands at either end. A name that could be mistaken for a number or
// for a node id gets the prefix "node-".
func label(hostname string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(hostname), ".")
	var b strings.Builder
	for _, r := range strings.ToLower(first) {
		if b.Len() == maxLabel {
			break
		}
		if r < 0x80 && labelByte(byte(r)) && r != '-' {
			b.WriteByte(byte(r))
		} else if s := b.String(); s != "" && s[len(s)-1] != '-' {
			b.WriteByte('-')
		}
	}
	s := strings.TrimRight(b.String(), "-")
	switch _, err := proto.ParseNodeID(s); {
	case s == "":
		return "node"
	case err == nil, strings.Trim(s, "0123456789-") == "":
		return numbered("node-"+s, 0)
	}
	return s
}

// numbered appends -n to a label unless n is 0, and keeps the result within the limit.
func numbered(base string, n int) string {
	suffix := ""
	if n > 0 {
		suffix = "-" + strconv.Itoa(n)
	}
	if room := maxLabel - len(suffix); len(base) > room {
		base = strings.TrimRight(base[:room], "-")
	}
	return base + suffix
}

// name finds a free name for a machine: its label, or the label with -1, -2 and so on. If the numbers in use are contiguous, it
// is the lowest free one, otherwise one of the free ones. The cost is logarithmic in the length of the run.
func (s *state) name(hostname string) string {
	base := label(hostname)
	free := func(n int) bool {
		l := numbered(base, n)
		_, taken := s.names.Get(l)
		return !taken && !reservedLabels[l]
	}
	if free(0) {
		return base
	}
	low, high := 0, 1 // low is taken
	for !free(high) {
		low, high = high, high*2
	}
	for low+1 < high {
		if mid := (low + high) / 2; free(mid) {
			high = mid
		} else {
			low = mid
		}
	}
	return numbered(base, high)
}
