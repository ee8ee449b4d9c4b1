package localapi

import (
	"context"
	"net"
	"net/http"

	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
)

// Client returns a client for the agent at a socket.
func Client(socket string) redoubtv1connect.LocalServiceClient {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}
	return redoubtv1connect.NewLocalServiceClient(&http.Client{Transport: transport}, "http://"+Host)
}
