package api

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// instance is one API server over a memory store, with a TLS listener on loopback.
type instance struct {
	*Server
	store      *store.Store
	url        string
	kubeconfig string
	config     *rest.Config // the administrator, protobuf
	stop       func()       // at the end of the test, or before
}

// start runs a server for a test. At the end it checks that nobody changed a frozen object.
func start(t testing.TB, change ...func(*Options)) *instance {
	t.Helper()
	return startOn(t, t.TempDir(), store.Memory(), change...)
}

// startOn runs a server with its files in dir.
func startOn(t testing.TB, dir string, backend store.Backend, change ...func(*Options)) *instance {
	t.Helper()
	_, bench := t.(*testing.B)
	s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: backend, Default: Default, Detector: !bench})
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix("10.96.0.0/16")
	ca, err := auth.OpenAuthority(filepath.Join(dir, "pki"), auth.Names{IPs: []net.IP{ServiceIP(prefix).AsSlice()}})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Store: s, Authority: ca, ServiceRange: prefix, Endpoint: netip.MustParseAddrPort("192.0.2.1:6443"),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range change {
		c(&o)
	}
	srv, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	stop := sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := srv.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := s.CheckFrozen(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	t.Cleanup(stop)
	i := &instance{Server: srv, store: s, url: "https://" + l.Addr().String(), kubeconfig: filepath.Join(dir, "kubeconfig"), stop: stop}
	if err := ca.WriteKubeconfig(i.kubeconfig, i.url); err != nil {
		t.Fatal(err)
	}
	if i.config, err = clientcmd.BuildConfigFromFlags("", i.kubeconfig); err != nil {
		t.Fatal(err)
	}
	i.config.QPS, i.config.Burst = -1, 0
	i.config.ContentType = "application/vnd.kubernetes.protobuf"
	i.config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	<-srv.Ready()
	return i
}

// testWriter sends the server's log to the test's.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// http is a client with the administrator's certificate and no opinion about encodings.
func (i *instance) http(t testing.TB) *http.Client {
	t.Helper()
	c, err := rest.HTTPClientFor(rest.CopyConfig(i.config))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (i *instance) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr)
}

var ipAddresses = kinds.IPAddresses

func mustPrefix(t testing.TB, s string) netip.Prefix {
	t.Helper()
	p, err := netip.ParsePrefix(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
