package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// probeClient makes one connection per probe: a kept one would not notice that the container stopped
// accepting new ones.
var probeClient = &http.Client{
	Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a probe asks whether it answers, not who
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		Proxy:             nil,
	},
	CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if req.URL.Hostname() != via[0].URL.Hostname() || len(via) >= 10 {
			return http.ErrUseLastResponse
		}
		return nil
	},
}

// grpcHealth asks the standard health service.
func grpcHealth(ctx context.Context, addr string, service *string) (string, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	name := ""
	if service != nil {
		name = *service
	}
	res, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: name})
	if err != nil {
		return fmt.Sprintf("error: health rpc probe failed: %v", err), err
	}
	if res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Sprintf("service unhealthy (responded with %q)", res.GetStatus()), fmt.Errorf("service unhealthy")
	}
	return "", nil
}
