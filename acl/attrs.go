package acl

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/redoubt-mesh/redoubt/proto"
)

// capabilities reads "app": {"example.com/cap/admin": [{"role": "owner"}], ...}. grant reports whether they are sent to the
// destination of a grant, rather than to nodes themselves.
func (p *parser) capabilities(m member, grant bool) map[string][]json.RawMessage {
	members, ok := p.object(m.value, "an object of capabilities and their lists of objects")
	if !ok {
		return nil
	}
	if len(members) > proto.MaxCapabilities {
		p.errorf(m.value, "names %d capabilities, and a rule has at most %d; split the rule", len(members), proto.MaxCapabilities)
		return nil
	}
	out := make(map[string][]json.RawMessage, len(members))
	size := 0
	for _, c := range members {
		if err := checkCapability(c.key, grant); err != nil {
			p.keyErrorf(c, "%v", err)
			continue
		}
		list, ok := p.list(c.value, "a list of objects")
		if !ok {
			continue
		}
		values := make([]json.RawMessage, 0, len(list))
		for _, v := range list {
			if _, ok := v.Value.Value.(*hujson.Object); !ok {
				p.errorf(v, "is %s; want an object such as {}", kindName(v.Value))
				continue
			}
			p.opaque(v)
			text := minimal(v.Value)
			size += len(text)
			values = append(values, text)
		}
		out[c.key] = values
	}
	if size > proto.MaxCapability {
		p.errorf(m.value, "has capabilities of %d bytes, and a rule at most %d; split the rule", size, proto.MaxCapability)
		return nil
	}
	return out
}

// opaque reports duplicate keys in values that only other programs understand.
func (p *parser) opaque(v value) {
	switch x := v.Value.Value.(type) {
	case *hujson.Object:
		members, _ := p.object(v, "")
		for _, m := range members {
			p.opaque(m.value)
		}
	case *hujson.Array:
		for i, e := range x.Elements {
			p.opaque(value{Value: e, path: v.path + "[" + strconv.Itoa(i) + "]"})
		}
	}
}

// minimal returns a value as JSON without comments and whitespace.
func minimal(v hujson.Value) json.RawMessage {
	v = v.Clone()
	v.Minimize()
	return json.RawMessage(v.Pack())
}

// grantable are the capabilities in another program's domain that a policy may grant.
var grantable = []string{
	"tailscale.com/cap/drive", "tailscale.com/cap/relay", "tailscale.com/cap/webui", "tailscale.com/cap/kubernetes",
	"tailscale.com/cap/tsidp", "tailscale.com/cap/secrets", "tailscale.com/cap/golink",
}

func checkCapability(name string, grant bool) error {
	domain, path, ok := strings.Cut(name, "/")
	switch {
	case !ok || domain == "" || path == "" || strings.Contains(name, "://") || !proto.ValidText(name, proto.MaxName) || strings.Contains(name, " "):
		return fmt.Errorf("%s is not a capability; a capability has a domain and a path, such as example.com/cap/admin", quote(name))
	case grant && domain == "tailscale.com" && !slices.Contains(grantable, name):
		return fmt.Errorf("%s is in the domain of another program, which sets it itself; use a domain of your own", quote(name))
	}
	return nil
}

// An address pool must lie within poolRange and outside poolReserved, which other programs use.
var (
	poolRange    = netip.MustParsePrefix("100.64.0.0/10")
	poolReserved = []netip.Prefix{netip.MustParsePrefix("100.100.0.0/24"), netip.MustParsePrefix("100.100.100.0/24"), netip.MustParsePrefix("100.115.92.0/23")}
)

// nodeAttrs reads "nodeAttrs": [{"target": ["tag:db"], "attr": ["nextdns:abc"], "app": {...}}, ...].
func (p *parser) nodeAttrs(v value) {
	list, _ := p.list(v, "a list of attributes of nodes")
	for i, e := range list {
		if i >= maxNodeAttrs {
			p.errorf(e, "more than %d entries; merge entries for the same nodes", maxNodeAttrs)
			return
		}
		before := len(p.diags)
		f, ok := p.fields(e, "an object with target and attr", nodeAttrKeys)
		if !ok {
			continue
		}
		a := NodeAttr{Place: p.place(e)}
		if m, ok := f["target"]; ok {
			a.Target = p.readSelectors(m, inTarget)
		}
		if m, ok := f["attr"]; ok {
			a.Attrs = p.attrs(m)
		}
		if m, ok := f["app"]; ok {
			a.App = p.capabilities(m, false)
		}
		if m, ok := f["ipPool"]; ok {
			p.pool(m)
		}
		if entries(f["attr"].value)+entries(f["app"].value)+entries(f["ipPool"].value) == 0 && len(p.diags) == before {
			p.report(Warning, a.Place, `grants nothing; add "attr" or "app", or remove the entry`)
		}
		p.policy.NodeAttrs = append(p.policy.NodeAttrs, a)
	}
}

// maxNodeAttrs bounds the entries of nodeAttrs, maxAttrs the attributes of each.
const (
	maxNodeAttrs = 1_000
	maxAttrs     = 256
)

func (p *parser) attrs(m member) []string {
	list, _ := p.list(m.value, "a list of attributes in quotes")
	if len(list) > maxAttrs {
		p.errorf(m.value, "has %d attributes; at most %d are read", len(list), maxAttrs)
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := p.str(v, "an attribute in quotes")
		if !ok {
			continue
		}
		if text == "" || !proto.ValidText(text, proto.MaxName) {
			p.errorf(v, "%s is not an attribute; it is a word of at most %d bytes", quote(text), proto.MaxName)
			continue
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// pool checks the ipPool of nodes, which has no effect: their addresses come from the range of the mesh.
func (p *parser) pool(m member) {
	list, _ := p.list(m.value, "a list of ranges of addresses")
	for _, v := range list {
		text, ok := p.str(v, "a range in quotes, such as 100.96.0.0/16")
		if !ok {
			continue
		}
		prefix, isPrefix, err := parseLiteral(text)
		if err == nil && !isPrefix {
			err = fmt.Errorf("%s is not a range of addresses; write one such as 100.96.0.0/16", quote(text))
		}
		if err == nil && (!poolRange.Contains(prefix.Addr()) || prefix.Bits() < poolRange.Bits()) {
			err = fmt.Errorf("%s is not within %s, as pools must be", quote(text), poolRange)
		}
		for _, r := range poolReserved {
			if err == nil && prefix.Overlaps(r) {
				err = fmt.Errorf("%s overlaps %s, which is reserved; use another range", quote(text), r)
			}
		}
		if err != nil {
			p.errorf(v, "%v", err)
		}
	}
	p.report(Warning, p.keyPlace(m), `"ipPool" has no effect here: every node has addresses from the ranges of the mesh`)
}
