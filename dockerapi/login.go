package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

const (
	hubAddress = "https://index.docker.io/v1/" // what clients call Docker Hub
	hubHost    = "registry-1.docker.io"        // where it is
	loginTime  = 20 * time.Second
)

// postAuth serves `docker login`: it asks the registry whether it knows the credentials. Nothing is kept; clients
// send them again with every pull and push.
func (s *Server) postAuth(w *reply, r *request) error {
	var auth registry.AuthConfig
	if err := readJSON(r, &auth); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), loginTime)
	defer cancel()
	l := login{auth: auth, client: &http.Client{}}
	if err := l.try(ctx, registryHost(auth.ServerAddress)); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

func registryHost(address string) string {
	if address == "" || address == hubAddress || address == "docker.io" || address == "index.docker.io" {
		return hubHost
	}
	address = strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://")
	host, _, _ := strings.Cut(address, "/")
	return host
}

type login struct {
	auth   registry.AuthConfig
	client *http.Client
}

// try asks over TLS, and in the clear only on this machine.
func (l login) try(ctx context.Context, host string) error {
	err := l.ask(ctx, "https://"+host+"/v2/")
	if err != nil && isLocal(host) && !errdefs.IsUnauthorized(err) {
		return l.ask(ctx, "http://"+host+"/v2/")
	}
	return err
}

func isLocal(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

func (l login) ask(ctx context.Context, endpoint string) error {
	resp, err := l.get(ctx, endpoint)
	if err != nil {
		return fmt.Errorf("log in to %s: %w", endpoint, err)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		if realm := bearerRealm(resp.Header.Get("WWW-Authenticate"), l.auth.Username); realm != "" {
			if resp, err = l.get(ctx, realm); err != nil {
				return fmt.Errorf("log in to %s: %w", endpoint, err)
			}
		}
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return errdefs.ErrUnauthenticated.WithMessage(fmt.Sprintf("login attempt to %s failed with status: %s", endpoint, resp.Status))
	}
	return fmt.Errorf("login attempt to %s failed with status: %s", endpoint, resp.Status)
}

// get makes a request with the credentials. The answer's body is of no interest.
func (l login) get(ctx context.Context, target string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	if l.auth.Username != "" {
		req.SetBasicAuth(l.auth.Username, l.auth.Password)
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp, err
}

// bearerRealm is where a token is to be had, from a challenge such as Bearer realm="https://auth/token",service="registry".
func bearerRealm(challenge, account string) string {
	scheme, params, _ := strings.Cut(challenge, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	values := map[string]string{}
	for part := range strings.SplitSeq(params, ",") {
		key, quoted, _ := strings.Cut(strings.TrimSpace(part), "=")
		var value string
		if json.Unmarshal([]byte(quoted), &value) != nil {
			value = quoted
		}
		values[strings.ToLower(key)] = value
	}
	u, err := url.Parse(values["realm"])
	if err != nil || u.Scheme != "https" && !isLocal(u.Host) {
		return "" // credentials do not travel in the clear
	}
	q := u.Query()
	q.Set("service", values["service"])
	q.Set("account", account)
	u.RawQuery = q.Encode()
	return u.String()
}
