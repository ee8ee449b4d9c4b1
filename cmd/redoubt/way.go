package main

import "time"

// steered is what the agent says of the way to a peer, in whatever message.
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

// What is printed of the way to a peer as JSON.
type (
	wayJSON struct {
		Path      string `json:"path"`      // direct or relay; empty while there is none
		Endpoint  string `json:"endpoint"`  // an address, or the relay's name
		Transport string `json:"transport"` // to a relay: udp or tls; directly: punched or empty
	}
	pathJSON struct {
		wayJSON
		PathSince        *time.Time `json:"pathSince"`
		PathRTT          float64    `json:"pathRttMs"`        // 0: not known
		PathMTU          uint32     `json:"pathMtu"`          // of packets inside the tunnel; 0: not known
		PathFragments    bool       `json:"pathFragments"`    // packets of that size arrive in fragments only
		PathInDoubt      bool       `json:"pathInDoubt"`      // direct, and through the relay as well until it has answered
		WhyNotDirect     string     `json:"whyNotDirect"`     // or in doubt
		WhyNotDirectCode string     `json:"whyNotDirectCode"` // the same for programs
	}
)

func wayOf(s steered) wayJSON {
	w := wayJSON{s.GetPath(), s.GetEndpoint(), s.GetPathTransport()}
	if w.Transport == "none" { // the relay is lost at the moment
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

// via is the same where it is news.
func (w wayJSON) via() string {
	if w.Path == "direct" {
		return "direct via " + w.Endpoint
	}
	return w.String()
}
