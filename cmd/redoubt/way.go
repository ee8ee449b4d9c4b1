package main

import "time"

// steered is implemented by the messages in which the agent describes the path to a peer.
type steered interface {
	GetPath() string
	GetEndpoint() string
	GetPathTransport() string
	GetPathSince() int64
	GetPathRttUs() uint64
	GetPathMtu() uint32
	GetPathFragments() bool
	GetPathDoubt() bool
	GetPathCause() string
	GetPathWhy() string
}

// The types of paths to peers in JSON output.
type (
	wayJSON struct {
		Path      string `json:"path"`      // direct or relay; empty if there is no path
		Endpoint  string `json:"endpoint"`  // an address, or the relay's name
		Transport string `json:"transport"` // relay: udp or tls; direct: punched or empty
	}
	pathJSON struct {
		wayJSON
		PathSince        *time.Time `json:"pathSince"`
		PathRTT          float64    `json:"pathRttMs"`        // 0: unknown
		PathMTU          uint32     `json:"pathMtu"`          // of packets inside the tunnel; 0: unknown
		PathFragments    bool       `json:"pathFragments"`    // packets of that size only arrive in fragments
		PathInDoubt      bool       `json:"pathInDoubt"`      // direct but unconfirmed: packets also go through the relay
		WhyNotDirect     string     `json:"whyNotDirect"`     // or why it is in doubt
		WhyNotDirectCode string     `json:"whyNotDirectCode"` // the same, for programs
	}
)

func wayOf(s steered) wayJSON {
	w := wayJSON{s.GetPath(), s.GetEndpoint(), s.GetPathTransport()}
	if w.Transport == "none" { // the connection to the relay is down at the moment
		w.Transport = ""
	}
	return w
}

func pathOf(s steered) pathJSON {
	return pathJSON{
		wayOf(s), fromMillis(s.GetPathSince()), float64(s.GetPathRttUs()) / 1000, s.GetPathMtu(), s.GetPathFragments(), s.GetPathDoubt(), s.GetPathWhy(), s.GetPathCause(),
	}
}

func (w wayJSON) String() string {
	text := w.Path + " " + w.Endpoint
	if w.Path == "direct" && w.Transport != "" {
		return text + " (" + w.Transport + ")"
	}
	if w.Transport != "" {
		text += " over " + w.Transport
	}
	return text
}

// via formats the path for the report of a change.
func (w wayJSON) via() string {
	if w.Path == "direct" {
		return "direct via " + w.Endpoint
	}
	return w.String()
}
