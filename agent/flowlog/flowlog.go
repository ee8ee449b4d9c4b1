// Package flowlog turns the filter's records into lines of the log.
//
//	filter ──Drain──► Aggregator ──► one line at once for a new denial,
//	                                 one a minute with its count while it goes on,
//	                                 the same for what passes only because a rule monitors it,
//	                                 one for each flow that a change of policy cut,
//	                                 one for each flow that began or ended, at debug level
//
// An Aggregator does no I/O and is bounded: new denials that arrive while it is full are only counted.
package flowlog

import (
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// Window is how often a continuing denial is reported.
	Window = time.Minute
	// MaxDenials is how many different denials are distinguished within a window.
	MaxDenials = 1024
)

// Line is a line for the log.
type Line struct {
	Level   slog.Level
	Message string
	Attrs   []slog.Attr
}

// denial is what makes two denials the same: everything but the ephemeral port.
type denial struct {
	kind          filter.Kind
	direction     proto.Direction
	local, remote netip.Addr
	protocol      uint8
	port          uint16
	reason        filter.Reason
}

type repeated struct {
	since time.Time // the last line written
	count uint64    // since that line
	last  filter.Record
}

// Aggregator merges records. It has one owner.
type Aggregator struct {
	denials map[denial]*repeated
	// overflow counts the denials that found no room since the time since.
	overflow uint64
	since    time.Time
	lost     uint64 // records that the filter had no room for, as last reported
}

// New returns an empty Aggregator.
func New() *Aggregator { return &Aggregator{denials: make(map[denial]*repeated)} }

// Add takes a record, and returns the line to write for it at once, if any.
func (a *Aggregator) Add(now time.Time, r filter.Record) (Line, bool) {
	switch r.Kind {
	case filter.Denied, filter.WouldDeny:
		return a.deny(now, r)
	case filter.FlowEnd:
		l := line("flow ended", r)
		l.Attrs = append(l.Attrs,
			slog.Uint64("out_bytes", r.Out.Bytes), slog.Uint64("in_bytes", r.In.Bytes), slog.Duration("lasted", r.Duration))
		if r.Reason == filter.Revoked {
			l.Level, l.Message = slog.LevelInfo, "flow cut"
			l.Attrs = append(l.Attrs, origin("denied_by", r.Near)...)
		}
		return l, true
	}
	return line("flow began", r), true
}

func (a *Aggregator) deny(now time.Time, r filter.Record) (Line, bool) {
	d := denial{r.Kind, r.Direction, r.Local.Addr(), r.Remote.Addr(), r.Proto, servicePort(r), r.Reason}
	if e := a.denials[d]; e != nil {
		e.count++
		e.last = r
		return Line{}, false
	}
	if len(a.denials) >= MaxDenials {
		if a.overflow == 0 {
			a.since = now
		}
		a.overflow++
		return Line{}, false
	}
	a.denials[d] = &repeated{since: now}
	return denied(r, 1), true
}

// Flush returns the lines that are due, oldest first. Lost is how many records the filter had no room for since it began.
func (a *Aggregator) Flush(now time.Time, lost uint64) []Line {
	type due struct {
		at   time.Time
		line Line
	}
	var all []due
	for d, e := range a.denials {
		if now.Sub(e.since) < Window {
			continue
		}
		if e.count == 0 {
			delete(a.denials, d)
			continue
		}
		all = append(all, due{e.since, denied(e.last, e.count)})
		e.since, e.count = now, 0
	}
	slices.SortFunc(all, func(x, y due) int { return x.at.Compare(y.at) })
	lines := make([]Line, 0, len(all)+2)
	for _, d := range all {
		lines = append(lines, d.line)
	}
	if a.overflow > 0 && now.Sub(a.since) >= Window {
		lines = append(lines, Line{slog.LevelInfo, "more denied", []slog.Attr{slog.Uint64("count", a.overflow)}})
		a.overflow = 0
	}
	if lost > a.lost {
		lines = append(lines, Line{slog.LevelWarn, "flow log has gaps", []slog.Attr{slog.Uint64("lost", lost-a.lost)}})
	}
	a.lost = lost
	return lines
}

func denied(r filter.Record, count uint64) Line {
	l := line(r.Kind.String(), r)
	l.Level = slog.LevelInfo
	l.Attrs = append(l.Attrs, origin("nearest", r.Near)...)
	if r.Watched {
		l.Attrs = append(l.Attrs, slog.String("until", r.Until.UTC().Format(time.RFC3339)))
	}
	l.Attrs = append(l.Attrs, slog.Uint64("count", count))
	return l
}

// origin names a rule, if there is one.
func origin(key string, o proto.Origin) []slog.Attr {
	if o.Path == "" {
		return nil
	}
	return []slog.Attr{slog.String(key, o.Path), slog.Int(key+"_line", o.Line)}
}

// line describes who connects to whom, in the direction of the connection.
func line(message string, r filter.Record) Line {
	from, to, src, dst := r.Self, r.Peer, r.Local, r.Remote
	if r.Direction == proto.In {
		from, to, src, dst = r.Peer, r.Self, r.Remote, r.Local
	}
	attrs := []slog.Attr{
		slog.String("direction", r.Direction.String()),
		slog.String("from", name(from)), slog.String("from_who", from.Who), slog.String("src", src.Addr().String()),
		slog.String("to", name(to)), slog.String("to_who", to.Who), slog.String("dst", dst.Addr().String()),
		slog.String("service", Service(r.Proto, servicePort(r))),
	}
	if r.Reason != filter.Permitted {
		attrs = append(attrs, slog.String("reason", r.Reason.String()))
	}
	if r.Rule.Path != "" {
		attrs = append(attrs, slog.String("rule", r.Rule.Path), slog.Int("line", r.Rule.Line))
	}
	attrs = append(attrs, slog.String("version", r.Version.String()))
	if r.Posture != (filter.Posture{}) {
		attrs = append(attrs, slog.String("posture", r.Posture.String()))
	}
	return Line{slog.LevelDebug, message, attrs}
}

func name(p filter.Party) string {
	if p.ID == 0 {
		return "?"
	}
	return p.Name
}

// servicePort returns the port on the side that accepts the connection.
func servicePort(r filter.Record) uint16 {
	switch {
	case !proto.HasPorts(r.Proto):
		return 0
	case r.Direction == proto.In:
		return r.Local.Port()
	}
	return r.Remote.Port()
}

var protocols = map[uint8]string{
	proto.ProtoICMP: "icmp", proto.ProtoTCP: "tcp", proto.ProtoUDP: "udp", proto.ProtoICMPv6: "icmpv6",
	proto.ProtoSCTP: "sctp", proto.ProtoGRE: "gre",
}

// Service names a protocol and port as policies do: tcp:443, icmp, 47.
func Service(protocol uint8, port uint16) string {
	name, ok := protocols[protocol]
	if !ok {
		name = strconv.Itoa(int(protocol))
	}
	if proto.HasPorts(protocol) {
		name += ":" + strconv.Itoa(int(port))
	}
	return name
}
