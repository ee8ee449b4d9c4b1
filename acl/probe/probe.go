package probe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// MaxLine is the maximum length of a probe in bytes.
const MaxLine = 64 << 10

// Probe is the first packet of a connection, and the node whose filter is to judge it.
type Probe struct {
	At       string
	Src, Dst netip.Addr
	Protocol uint8
	Port     uint16
}

// keys are the keys of a probe, in the order of the elements of raw.
var keys = [...]string{"at", "src_ip", "dst_ip", "proto", "port"}

const (
	keyAt = iota
	keySrc
	keyDst
	keyProto
	keyPort
)

// value is the value of a key: the text of a string or a number.
type value struct {
	text   []byte
	quoted bool
	there  bool
}

// raw holds the values of a probe, indexed by key.
type raw [len(keys)]value

// Parse parses a line.
func Parse(line []byte) (Probe, error) {
	var r raw
	ok, err := r.scan(line)
	if !ok && err == nil {
		r = raw{}
		err = r.decode(line)
	}
	if err != nil {
		return Probe{}, err
	}
	return r.probe()
}

func (r *raw) probe() (p Probe, err error) {
	for i, v := range r {
		if !v.there && i != keyPort {
			return p, fmt.Errorf("%q is missing", keys[i])
		}
		if v.there && !v.quoted && i < keyProto {
			return p, fmt.Errorf("%q is no string", keys[i])
		}
	}
	p.At = string(r[keyAt].text)
	if p.Src, err = addr(r[keySrc].text); err != nil {
		return p, fmt.Errorf("src_ip: %w", err)
	}
	if p.Dst, err = addr(r[keyDst].text); err != nil {
		return p, fmt.Errorf("dst_ip: %w", err)
	}
	if p.Protocol, err = protocol(r[keyProto].text); err != nil {
		return p, fmt.Errorf("proto: %w", err)
	}
	port := r[keyPort]
	if !port.there {
		if proto.HasPorts(p.Protocol) {
			return p, errors.New(`"port" is missing`)
		}
		return p, nil
	}
	n, err := strconv.ParseUint(string(port.text), 10, 16)
	if err != nil || port.quoted {
		return p, errors.New("port: want a number from 0 to 65535")
	}
	p.Port = uint16(n)
	return p, nil
}

func addr(b []byte) (netip.Addr, error) {
	a, err := netip.ParseAddr(string(b))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is no address", cut(b))
	}
	return a, nil
}

func protocol(b []byte) (uint8, error) {
	switch string(b) {
	case "tcp":
		return proto.ProtoTCP, nil
	case "udp":
		return proto.ProtoUDP, nil
	}
	return acl.ParseProtocol(string(b))
}

func cut(b []byte) []byte { return b[:min(len(b), 64)] }

// scan parses a flat object without escapes. It returns false and no error for anything else, valid or not.
func (r *raw) scan(b []byte) (ok bool, err error) {
	b = skip(b)
	if len(b) == 0 || b[0] != '{' {
		return false, nil
	}
	for b = skip(b[1:]); ; b = skip(b[1:]) {
		key, rest, ok := text(b)
		if !ok {
			return false, nil
		}
		if b = skip(rest); len(b) == 0 || b[0] != ':' {
			return false, nil
		}
		v := value{there: true}
		if b = skip(b[1:]); len(b) > 0 && b[0] == '"' {
			v.quoted = true
			v.text, b, ok = text(b)
		} else {
			v.text, b, ok = bare(b)
		}
		if !ok {
			return false, nil
		}
		for i := range keys {
			if string(key) != keys[i] {
				continue
			}
			if r[i].there {
				return false, twice(i)
			}
			r[i] = v
		}
		if b = skip(b); len(b) == 0 {
			return false, nil
		}
		if b[0] == '}' {
			return len(skip(b[1:])) == 0, nil
		}
		if b[0] != ',' {
			return false, nil
		}
	}
}

func skip(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\r' || b[0] == '\n') {
		b = b[1:]
	}
	return b
}

// text parses an ASCII string without escapes.
func text(b []byte) (s, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return b[1:i], b[i+1:], true
		case c == '\\' || c < ' ' || c >= 0x80:
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// bare parses an unsigned integer, true or false.
func bare(b []byte) (s, rest []byte, ok bool) {
	for _, word := range []string{"true", "false"} {
		if bytes.HasPrefix(b, []byte(word)) {
			return b[:len(word)], b[len(word):], true
		}
	}
	n := 0
	for n < len(b) && '0' <= b[n] && b[n] <= '9' {
		n++
	}
	return b[:n], b[n:], n == 1 || n > 1 && b[0] != '0'
}

// decode parses any object.
func (r *raw) decode(line []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(line, &all); err != nil {
		return fmt.Errorf("not a JSON object: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if all == nil {
		return errors.New("not a JSON object: null")
	}
	// A map keeps only the last value of a key, so the members are read again one by one.
	d := json.NewDecoder(bytes.NewReader(line))
	_, err := d.Token() // {
	for err == nil && d.More() {
		err = r.member(d)
	}
	return err
}

// member reads a key and its value.
func (r *raw) member(d *json.Decoder) error {
	key, err := d.Token()
	if err != nil {
		return err
	}
	var m json.RawMessage
	if err := d.Decode(&m); err != nil {
		return err
	}
	i := slices.Index(keys[:], fmt.Sprint(key))
	if i < 0 {
		return nil
	}
	if r[i].there {
		return twice(i)
	}
	r[i] = value{text: m, there: true}
	if bytes.HasPrefix(m, []byte{'"'}) {
		var s string
		if err := json.Unmarshal(m, &s); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		r[i].text, r[i].quoted = []byte(s), true
	}
	return nil
}

func twice(key int) error { return fmt.Errorf("%q is there twice", keys[key]) }

// AppendVerdict appends the answer to a probe, as a line.
func AppendVerdict(b []byte, v compile.Verdict) []byte {
	b = append(b, `{"allowed":`...)
	b = strconv.AppendBool(b, v.Allowed)
	b = append(b, `,"rule":"`...)
	if v.Rule != nil {
		b = append(b, Rule(v.Rule.Path)...)
	}
	b = append(b, `","mode":"`...)
	b = append(b, v.Mode...)
	return append(b, "\"}\n"...)
}

// Rule returns the rule of the policy that a path is part of: grants[3] for grants[3].dst[0].
func Rule(path string) string {
	rule, _, _ := strings.Cut(path, ".")
	return rule
}

// AppendError appends the answer to an invalid probe.
func AppendError(b []byte, err error) []byte {
	text, _ := json.Marshal(map[string]string{"error": err.Error()}) // strings can always be marshaled
	return append(append(b, text...), '\n')
}
