package registry

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/image"
)

// guarded puts a lock in front of a registry: Basic, or Bearer with a token server of its own.
func guarded(t testing.TB, m *machine, scheme string, tls bool) *httptest.Server {
	t.Helper()
	var srv *httptest.Server
	open := New(Options{Repositories: m.Repositories()})
	known := func(r *http.Request) bool {
		user, secret, ok := r.BasicAuth()
		return ok && user == "me" && secret == "word"
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && known(r):
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "ticket for " + r.URL.Query().Get("service")})
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusUnauthorized)
		case scheme == "Basic" && known(r), r.Header.Get("Authorization") == "Bearer ticket for tests":
			open.ServeHTTP(w, r)
		case scheme == "Basic":
			w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="tests"`, srv.URL))
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	srv = httptest.NewUnstartedServer(handler)
	if tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv
}

func login(user, secret string) image.AuthFunc {
	return func(string) (string, string, error) { return user, secret, nil }
}

func TestAuthentication(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			server, dev := newMachine(t), newMachine(t)
			srv := guarded(t, server, scheme, false)
			ref := strings.TrimPrefix(srv.URL, "http://") + "/app:1"
			dev.importImage(t, ref)
			for who, auth := range map[string]image.AuthFunc{"nobody": nil, "a stranger": login("me", "wrong")} {
				err := dev.Push(t.Context(), ref, image.PushOptions{Auth: auth})
				if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "may require login") {
					t.Errorf("%s pushes: %v; want it denied", who, err)
				}
				if _, err := dev.Pull(t.Context(), ref, image.PullOptions{Auth: auth}); !errdefs.IsPermissionDenied(err) {
					t.Errorf("%s pulls: %v; want it denied", who, err)
				}
			}
			if err := dev.Push(t.Context(), ref, image.PushOptions{Auth: login("me", "word")}); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.Pull(t.Context(), ref, image.PullOptions{Auth: login("me", "word")}); err != nil {
				t.Fatal(err)
			}
			_, err := dev.Pull(t.Context(), strings.Replace(ref, ":1", ":none", 1), image.PullOptions{Auth: login("me", "word")})
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "manifest unknown") {
				t.Errorf("a tag that is not there: %v", err)
			}
		})
	}
}

// A registry with TLS that is not on localhost is only trusted with a certificate.
func TestTLS(t *testing.T) {
	server := newMachine(t)
	srv := guarded(t, server, "Basic", true)
	port := srv.URL[strings.LastIndexByte(srv.URL, ':'):]
	// httptest's certificate is for example.com and 127.0.0.1; the latter is local, so
	// that no certificate is asked for there.
	for _, tt := range []struct {
		name, host string
		ca         bool
		want       string
	}{
		{"local, nobody vouches", "127.0.0.1" + port, false, ""},
		{"local, with a certificate", "127.0.0.1" + port, true, ""},
		{"local by name, with a certificate for another", "localhost" + port, true, "not localhost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			certs := t.TempDir()
			if tt.ca {
				if err := os.MkdirAll(certs+"/"+tt.host, 0o755); err != nil {
					t.Fatal(err)
				}
				ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
				if err := os.WriteFile(certs+"/"+tt.host+"/ca.crt", ca, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			dev := &machine{}
			var err error
			if dev.Store, err = image.Open(t.Context(), image.Options{Root: t.TempDir(), CertsDir: certs}); err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			ref := tt.host + "/app:1"
			dev.importImage(t, ref)
			err = dev.Push(t.Context(), ref, image.PushOptions{Auth: login("me", "word")})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("push: %v; want error %q", err, tt.want)
			}
		})
	}
}

// A registry that sends other bytes than its manifest lists is found out.
func TestTamperedLayer(t *testing.T) {
	server, dev, prod := newMachine(t), newMachine(t), newMachine(t)
	open := New(Options{Repositories: server.Repositories()})
	tamper := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		open.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		if tamper && strings.Contains(r.URL.Path, "/blobs/") && len(body) > 100 && body[0] == 0x1f {
			body[len(body)/2] ^= 1
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/app:1"
	dev.importImage(t, ref)
	if err := dev.Push(t.Context(), ref, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	tamper = true
	_, err := prod.Pull(t.Context(), ref, image.PullOptions{})
	if err == nil || !strings.Contains(err.Error(), "damaged or was tampered with") {
		t.Errorf("pull of a tampered layer: %v", err)
	}
	if _, err := prod.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Errorf("after the failed pull: %v; want no image", err)
	}
	tamper = false
	if _, err := prod.Pull(t.Context(), ref, image.PullOptions{}); err != nil {
		t.Errorf("pull once it is sound again: %v", err)
	}
}
