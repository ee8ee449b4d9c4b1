package e2e

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// errChallenged means that the coordinator continued with an enrolment.
var errChallenged = errors.New("challenged")

// helloOf sends the hello of an agent with these protocol versions, and returns the coordinator's refusal.
func (r *rig) helloOf(h *lab.Host, code join.Code, lowest, highest uint32) (string, error) {
	raw, err := h.Dial(r.ctx, "tcp", netip.AddrPortFrom(r.VM.V4(), 443).String())
	if err != nil {
		return "", err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	conn := tls.Client(raw, cert.ClientConfig(nil, cert.ForJoining(code.Root, time.Now)))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, wire.Protocol); err != nil {
		return "", err
	}
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return "", errors.New(response.Status)
	}
	if err := sayHello(conn, code, lowest, highest); err != nil {
		return "", err
	}
	frame, err := wire.ReadFrame(in, nil, wire.MaxFrameUnauthenticated)
	if err != nil {
		return "", err
	}
	down, err := wire.DecodeDown(frame)
	switch {
	case err != nil:
		return "", err
	case down.GetChallenge() != nil:
		return "", errChallenged
	case down.GetRefusal().GetCode() != redoubtv1.Refusal_CODE_VERSION:
		return "", fmt.Errorf("the coordinator says %v", down)
	}
	return down.GetRefusal().GetMessage(), nil
}

func sayHello(w io.Writer, code join.Code, lowest, highest uint32) error {
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		return err
	}
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return err
	}
	hello := enroll.Hello("later", "later", enroll.Facts{})
	hello.ProtocolMin, hello.ProtocolMax = lowest, highest
	hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
		Evidence: []string{enroll.EvidenceToken}, DevicePublic: device.Device().Bytes(),
		NodePublic: node.Public().Bytes(), TokenPublic: code.Secret.Public().Bytes(),
	}}
	frame, err := wire.AppendFrame(nil, &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, strings.NewReader(string(frame)))
	return err
}
