package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AuthFunc says who we are at a registry host ("registry-1.docker.io", "localhost:5000").
// An empty user with a secret is an identity token; both empty is anonymous.
type AuthFunc func(host string) (user, secret string, err error)

// remoteOptions are the store's rules for reaching registries.
type remoteOptions struct {
	insecure func(host string) bool
	certsDir string
}

// registryClient speaks to one registry for the length of one operation.
type registryClient struct {
	remotes.Resolver
	transport *http.Transport
}

func (c *registryClient) close() { c.transport.CloseIdleConnections() }

// client makes a client for the registry at host. Where no TLS is asked for, https is
// tried all the same, and http when the other side does not speak it.
func (o remoteOptions) client(host string, auth AuthFunc, plain bool) (*registryClient, error) {
	local, _ := docker.MatchLocalhost(host) // never fails
	insecure := plain || local || o.insecure(host)
	conf, err := o.tls(host, insecure)
	if err != nil {
		return nil, err
	}
	transport := docker.DefaultHTTPTransport(conf)
	client := &http.Client{Transport: transport}
	if insecure {
		client.Transport = docker.NewHTTPFallback(transport)
	}
	authorize := docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(auth))
	hosts := func(name string) ([]docker.RegistryHost, error) {
		address, err := docker.DefaultHost(name)
		return []docker.RegistryHost{{
			Client: client, Authorizer: authorize, Host: address, Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}}, err
	}
	return &registryClient{Resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts}), transport: transport}, nil
}

// tls reads the certificates that Docker's users keep per registry.
func (o remoteOptions) tls(host string, insecure bool) (*tls.Config, error) {
	conf := &tls.Config{InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12}
	dir := filepath.Join(o.certsDir, filepath.Base(host))
	if ca, err := os.ReadFile(filepath.Join(dir, "ca.crt")); err == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s/ca.crt holds no certificate: %w", dir, errdefs.ErrInvalidArgument)
		}
		conf.RootCAs = pool
		conf.InsecureSkipVerify = false // somebody vouches for this one after all
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key"))
	if err == nil {
		conf.Certificates = []tls.Certificate{cert}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("client certificate in %s: %w", dir, err)
	}
	return conf, nil
}

// remoteError gives what a registry answered the kind and the words that users know.
func remoteError(ref reference.Named, err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	name := reference.FamiliarString(ref)
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("manifest for %s not found: manifest unknown: %w", name, errdefs.ErrNotFound)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return fmt.Errorf("access to %s is denied, the repository does not exist or may require login: %w: %w", reference.FamiliarName(ref), err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// fetchDocument reads a manifest, an index or a configuration from a registry, checked.
func fetchDocument(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor) ([]byte, error) {
	if d.MediaType == images.MediaTypeDockerSchema1Manifest {
		return nil, fmt.Errorf("%s is a manifest of Docker's schema 1, which nobody makes since 2017: push the image again with a newer tool: %w", d.Digest, errdefs.ErrNotImplemented)
	}
	if d.Size > maxDocument {
		return nil, fmt.Errorf("%s is %d bytes long, more than %d: %w", d.Digest, d.Size, maxDocument, errdefs.ErrResourceExhausted)
	}
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	r, err := f.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return nil, mismatch("document", d.Digest, got)
	}
	return raw, nil
}
