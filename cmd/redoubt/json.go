package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func jsonFlag(cmd *cobra.Command) *bool { return cmd.Flags().Bool("json", false, "print JSON") }

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// The types that `status --json` and others print. Names must not change once released; times are RFC 3339, or null if unset.
type (
	statusJSON struct {
		State         string          `json:"state"`
		Node          *nodeJSON       `json:"node"`
		Coordinator   coordinatorJSON `json:"coordinator"`
		PolicyVersion string          `json:"policyVersion"`
		Peers         []peerJSON      `json:"peers"`
		Problems      []string        `json:"problems"`
		Interface     string          `json:"interface"`
		ListenPort    uint32          `json:"listenPort"`
		MeshDomain    string          `json:"meshDomain"`
		Program       string          `json:"program"`
		Filter        filterJSON      `json:"filter"`
		Attestation   string          `json:"attestation"`
		DeviceKey     string          `json:"deviceKey"`
		WireGuard     *wireguardJSON  `json:"wireguard"`
		Routing       routingJSON     `json:"routing"`
		Pending       *pendingJSON    `json:"pending"` // what it waits for before it becomes a node; null for nothing
	}
	pendingJSON struct {
		Code  string     `json:"code"`
		Name  string     `json:"name"`
		Since *time.Time `json:"since"`
	}
	nodeJSON struct {
		ID                 string     `json:"id"`
		Name               string     `json:"name"`
		Addresses          []string   `json:"addresses"`
		User               string     `json:"user"`
		Tags               []string   `json:"tags"`
		CertificateExpires *time.Time `json:"certificateExpires"`
	}
	coordinatorJSON struct {
		Connected bool       `json:"connected"`
		LastHeard *time.Time `json:"lastHeard"`
		URL       string     `json:"url"`
	}
	peerJSON struct {
		nodeJSON
		pathJSON
		LastHandshake *time.Time `json:"lastHandshake"`
		RxBytes       uint64     `json:"rxBytes"`
		TxBytes       uint64     `json:"txBytes"`

		Tunnel *tunnelJSON       `json:"tunnel"`
		Denied map[string]uint64 `json:"denied"`
	}
	wireguardJSON struct {
		Keys  []keyJSON         `json:"keys"`
		Drops map[string]uint64 `json:"drops"`
	}
	keyJSON struct {
		PublicKey string     `json:"publicKey"`
		Since     *time.Time `json:"since"`
		Until     *time.Time `json:"until"`
	}
	tunnelJSON struct {
		PublicKey    string            `json:"publicKey"`
		KeySince     *time.Time        `json:"keySince"`
		Keys         uint32            `json:"keys"`
		Sessions     uint32            `json:"sessions"`
		SessionSince *time.Time        `json:"sessionSince"`
		Handshakes   uint64            `json:"handshakes"`
		Unanswered   uint64            `json:"unanswered"`
		Drops        map[string]uint64 `json:"drops"`
	}
	filterJSON struct {
		Flows          uint64            `json:"flows"`
		AllowedPackets uint64            `json:"allowedPackets"`
		DeniedPackets  uint64            `json:"deniedPackets"`
		Drops          map[string]uint64 `json:"drops"`
	}
)

func statusOf(st *redoubtv1.Status) statusJSON {
	f := st.GetFilter()
	out := statusJSON{
		State: st.GetState(), PolicyVersion: st.GetPolicyVersion(), Problems: list(st.GetProblems()), Peers: []peerJSON{},
		Interface: st.GetInterface(), ListenPort: st.GetListenPort(), MeshDomain: st.GetMeshDomain(), Program: st.GetProgram(),
		Attestation: st.GetNode().GetAttestation(), DeviceKey: st.GetDeviceKey(),
		Coordinator: coordinatorJSON{
			Connected: st.GetCoordinator().GetConnected(), URL: st.GetCoordinator().GetUrl(),
			LastHeard: fromMillis(st.GetCoordinator().GetLastHeard()),
		},
		Filter:    filterJSON{f.GetFlows(), f.GetAllowedPackets(), f.GetDeniedPackets(), counters(f.GetDrops())},
		WireGuard: wireguardOf(st.GetWireguard()),
		Routing:   routingOf(st.GetRouting()),
	}
	if st.GetNode() != nil {
		n := nodeOf(st.GetNode())
		out.Node = &n
	}
	if a := st.GetPending(); a != nil {
		out.Pending = &pendingJSON{a.GetCode(), a.GetName(), fromSeconds(a.GetSince())}
	}
	for _, p := range st.GetPeers() {
		out.Peers = append(out.Peers, peerJSON{
			nodeJSON: nodeJSON{
				ID: p.GetId(), Name: p.GetName(), Addresses: list(p.GetAddresses()), User: p.GetUser(), Tags: list(p.GetTags()),
				CertificateExpires: fromSeconds(p.GetCertificateExpires()),
			},
			pathJSON: pathOf(p), LastHandshake: fromMillis(p.GetLastHandshake()),
			RxBytes: p.GetRxBytes(), TxBytes: p.GetTxBytes(), Tunnel: tunnelOf(p.GetTunnel()),
			Denied: counters(p.GetDenied()),
		})
	}
	return out
}

func nodeOf(n *redoubtv1.LocalNode) nodeJSON {
	return nodeJSON{
		ID: n.GetId(), Name: n.GetName(), Addresses: list(n.GetAddresses()), User: n.GetUser(), Tags: list(n.GetTags()),
		CertificateExpires: fromSeconds(n.GetCertificateExpires()),
	}
}

func wireguardOf(w *redoubtv1.WireGuard) *wireguardJSON {
	if w == nil {
		return nil
	}
	out := &wireguardJSON{Keys: []keyJSON{}, Drops: counters(w.GetDrops())}
	for _, k := range w.GetKeys() {
		out.Keys = append(out.Keys, keyJSON{k.GetPublicKey(), fromMillis(k.GetSince()), fromMillis(k.GetUntil())})
	}
	return out
}

func tunnelOf(t *redoubtv1.Tunnel) *tunnelJSON {
	if t == nil {
		return nil
	}
	return &tunnelJSON{
		PublicKey: t.GetPublicKey(), KeySince: fromMillis(t.GetKeySince()), Keys: t.GetKeys(), Sessions: t.GetSessions(),
		SessionSince: fromMillis(t.GetSessionSince()), Handshakes: t.GetHandshakes(), Unanswered: t.GetUnanswered(),
		Drops: counters(t.GetDrops()),
	}
}

// counters returns m, or an empty map instead of nil, so that JSON has no null.
func counters(m map[string]uint64) map[string]uint64 {
	if m == nil {
		return map[string]uint64{}
	}
	return m
}

// list returns s, or an empty list instead of nil, so that JSON has no null.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func fromMillis(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := time.UnixMilli(ms).UTC()
	return &t
}

func fromSeconds(s int64) *time.Time { return fromMillis(s * 1000) }
