package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

// machine is one store, with the registry that it serves.
type machine struct {
	*image.Store
	host string
	url  string
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	return newMachineIn(t, t.TempDir())
}

func newMachineIn(t testing.TB, root string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers are overlay directories, which only root may make")
	}
	m := &machine{}
	var err error
	m.Store, err = image.Open(t.Context(), image.Options{Root: root, Registries: func(h string) bool { return h == m.host }})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		New(Options{Repositories: m.Repositories(), Host: func() string { return m.host }}).ServeHTTP(w, r)
	}))
	m.host, m.url = strings.TrimPrefix(srv.URL, "http://"), srv.URL
	t.Cleanup(func() {
		srv.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func rootfs(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for name, body := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (m *machine) importImage(t testing.TB, ref string) image.Image {
	t.Helper()
	img, err := m.Import(t.Context(), bytes.NewReader(rootfs(t, map[string]string{"hello": strings.Repeat("hello ", 5000)})), ref, image.ImportOptions{Created: time.Unix(1700000000, 0).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// statuses collects what an operation says of its progress.
type statuses struct {
	mu  sync.Mutex
	all []string
}

func (s *statuses) say(p image.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, p.Status)
}

func (s *statuses) has(t *testing.T, want string) {
	t.Helper()
	for _, got := range s.all {
		if strings.HasPrefix(got, want) {
			return
		}
	}
	t.Errorf("progress %q has no %q", s.all, want)
}

func readable(t *testing.T, m *machine, ref string) {
	t.Helper()
	img, err := m.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.Rootfs(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(c.Lower[0] + "/hello"); err != nil || !strings.HasPrefix(string(b), "hello hello") {
		t.Errorf("%s: hello = %.20q, %v", ref, b, err)
	}
}

func TestPushAndPullBetweenMachines(t *testing.T) {
	server, dev, prod := newMachine(t), newMachine(t), newMachine(t)
	ref := server.host + "/team/app:1"
	local := dev.importImage(t, ref)
	var first, again, pulled statuses
	if err := dev.Push(t.Context(), ref, image.PushOptions{Progress: first.say}); err != nil {
		t.Fatal(err)
	}
	first.has(t, "Pushed")
	first.has(t, "1: digest: sha256:")
	if err := dev.Push(t.Context(), ref, image.PushOptions{Progress: again.say}); err != nil {
		t.Fatal(err)
	}
	again.has(t, "Layer already exists")
	pushed, err := dev.Get(t.Context(), ref)
	if err != nil || len(pushed.RepoDigests) != 1 {
		t.Fatalf("after the push, repo digests are %q, %v; want one", pushed.RepoDigests, err)
	}
	readable(t, server, ref) // what was pushed is an image there

	img, err := prod.Pull(t.Context(), ref, image.PullOptions{Progress: pulled.say})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Pulling from", "Download complete", "Pull complete", "Digest: sha256:", "Status: Downloaded newer image for"} {
		pulled.has(t, want)
	}
	if img.ID != local.ID {
		t.Errorf("pulled image has id %s; want %s, as where it was made", img.ID, local.ID)
	}
	if len(img.RepoDigests) != 1 || img.RepoDigests[0] != pushed.RepoDigests[0] {
		t.Errorf("pulled repo digests %q; want %q", img.RepoDigests, pushed.RepoDigests)
	}
	readable(t, prod, img.RepoDigests[0])
	var same statuses
	if _, err := prod.Pull(t.Context(), ref, image.PullOptions{Progress: same.say}); err != nil {
		t.Fatal(err)
	}
	same.has(t, "Status: Image is up to date")
}

func TestOwnPushMovesNoBytesAndIsServed(t *testing.T) {
	server, other := newMachine(t), newMachine(t)
	ref := server.host + "/app:2"
	local := server.importImage(t, ref)
	before, err := server.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Push(t.Context(), ref, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	after, err := server.Usage(t.Context())
	if err != nil || after.Content != before.Content {
		t.Errorf("content grew from %d to %d bytes, %v", before.Content, after.Content, err)
	}
	img, err := other.Pull(t.Context(), ref, image.PullOptions{})
	if err != nil || img.ID != local.ID {
		t.Fatalf("pulled %s, %v; want %s", img.ID, err, local.ID)
	}
	// A name taken away locally is still served, and can be pulled back.
	if _, err := server.Remove(t.Context(), ref, image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := server.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if img, err := server.Pull(t.Context(), ref, image.PullOptions{}); err != nil || img.ID != local.ID {
		t.Fatalf("pulled back %s, %v; want %s", img.ID, err, local.ID)
	}
	readable(t, server, ref)
	layer := local.Manifest.Layers[0]
	got := server.do(t, "GET", "/v2/app/blobs/"+layer.Digest.String(), nil, "Range", "bytes=100-199")
	if len(got.body) != 100 || got.status != http.StatusPartialContent {
		t.Errorf("part of a layer: status %d, %d bytes; want 206, 100", got.status, len(got.body))
	}
}

// answer is a response as tests look at it.
type answer struct {
	status int
	header http.Header
	body   string
}

func (m *machine) do(t testing.TB, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = m.url + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(raw)}
}

func (m *machine) want(t *testing.T, status int, method, path string, body []byte, headers ...string) answer {
	t.Helper()
	a := m.do(t, method, path, body, headers...)
	if a.status != status {
		t.Errorf("%s %s = %d %s; want %d", method, path, a.status, a.body, status)
	}
	return a
}

func (m *machine) blob(t *testing.T, repo, body string) digest.Digest {
	t.Helper()
	d := digest.FromString(body)
	m.want(t, 201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), []byte(body))
	return d
}

// artifact pushes a manifest with one layer and returns its digest.
func (m *machine) artifact(t *testing.T, repo, tag, body string, subject *ocispec.Descriptor) digest.Digest {
	t.Helper()
	config := m.blob(t, repo, "{}")
	layer := m.blob(t, repo, body)
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "test/" + body,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Digest: config, Size: 2},
		Layers: []ocispec.Descriptor{{MediaType: "text/plain", Digest: layer, Size: int64(len(body))}}, Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(raw)
	if tag == "" {
		tag = d.String()
	}
	a := m.want(t, 201, "PUT", "/v2/"+repo+"/manifests/"+tag, raw, "Content-Type", ocispec.MediaTypeImageManifest)
	if a.header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("put manifest answers digest %q; want %s", a.header.Get("Docker-Content-Digest"), d)
	}
	if subject != nil && a.header.Get("OCI-Subject") != subject.Digest.String() {
		t.Errorf("put manifest answers subject %q; want %s", a.header.Get("OCI-Subject"), subject.Digest)
	}
	return d
}

func TestUploads(t *testing.T) {
	m := newMachine(t)
	d := digest.FromString("hello world")
	start := m.want(t, 202, "POST", "/v2/r/blobs/uploads/", nil)
	at := start.header.Get("Location")
	m.want(t, 202, "PATCH", at, []byte("hello "), "Content-Range", "0-5")
	if a := m.want(t, 416, "PATCH", at, []byte("xxx"), "Content-Range", "3-5"); a.header.Get("Range") != "0-5" {
		t.Errorf("out of order: Range = %q; want 0-5", a.header.Get("Range"))
	}
	if a := m.want(t, 204, "GET", at, nil); a.header.Get("Range") != "0-5" {
		t.Errorf("status: Range = %q; want 0-5", a.header.Get("Range"))
	}
	m.want(t, 404, "GET", strings.Replace(at, "/v2/r/", "/v2/other/", 1), nil)
	done := m.want(t, 201, "PUT", at+"?digest="+d.String(), []byte("world"))
	if a := m.want(t, 200, "GET", done.header.Get("Location"), nil); a.body != "hello world" {
		t.Errorf("blob = %q", a.body)
	}
	if a := m.want(t, 200, "HEAD", done.header.Get("Location"), nil); a.header.Get("Content-Length") != "11" || a.header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("head = %v", a.header)
	}
	m.want(t, 404, "PUT", at+"?digest="+d.String(), nil)

	cancelled := m.want(t, 202, "POST", "/v2/r/blobs/uploads/", nil).header.Get("Location")
	m.want(t, 204, "DELETE", cancelled, nil)
	m.want(t, 404, "GET", cancelled, nil)
	m.want(t, 400, "POST", "/v2/r/blobs/uploads/?digest="+digest.FromString("something else").String(), []byte("hello"))
	m.want(t, 400, "POST", "/v2/r/blobs/uploads/?digest=sha256:xyz", []byte("hello"))
	m.want(t, 416, "POST", "/v2/r/blobs/uploads/?digest="+d.String(), []byte("hello"), "Content-Range", "5-9")
	m.blob(t, "r", "") // an empty blob is a blob
	if left, err := m.Content().ListStatuses(m.Context(t.Context())); err != nil || len(left) > 0 {
		t.Errorf("uploads that nobody can go on with: %v, %v", left, err)
	}
}

func TestPresenceOfContentIsNoMembership(t *testing.T) {
	m := newMachine(t)
	secret := m.blob(t, "private/app", "secret")
	m.want(t, 404, "GET", "/v2/public/app/blobs/"+secret.String(), nil)
	m.want(t, 404, "HEAD", "/v2/public/app/blobs/"+secret.String(), nil)
	m.want(t, 202, "POST", "/v2/public/app/blobs/uploads/?mount="+secret.String(), nil)
	m.want(t, 202, "POST", "/v2/public/app/blobs/uploads/?from=elsewhere&mount="+secret.String(), nil)
	raw := fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"x/y","digest":%q,"size":6},"layers":[]}`, secret)
	a := m.want(t, 404, "PUT", "/v2/public/app/manifests/1", []byte(raw), "Content-Type", ocispec.MediaTypeImageManifest)
	if !strings.Contains(a.body, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("manifest over another repository's blob: %s", a.body)
	}
	m.want(t, 201, "POST", "/v2/public/app/blobs/uploads/?from=private/app&mount="+secret.String(), nil)
	m.want(t, 200, "GET", "/v2/public/app/blobs/"+secret.String(), nil)
}

func TestTagsCatalogAndDeletion(t *testing.T) {
	m := newMachine(t)
	var last digest.Digest
	for _, tag := range []string{"b", "c", "a"} {
		last = m.artifact(t, "x/y", tag, "content of "+tag, nil)
	}
	if a := m.want(t, 200, "GET", "/v2/x/y/tags/list?n=2", nil); a.body != `{"name":"x/y","tags":["a","b"]}` || !strings.Contains(a.header.Get("Link"), "last=b") {
		t.Errorf("first page %s, link %q", a.body, a.header.Get("Link"))
	}
	if a := m.want(t, 200, "GET", "/v2/x/y/tags/list?n=2&last=b", nil); a.body != `{"name":"x/y","tags":["c"]}` || a.header.Get("Link") != "" {
		t.Errorf("second page %s, link %q", a.body, a.header.Get("Link"))
	}
	if a := m.want(t, 200, "GET", "/v2/x/y/tags/list?n=0", nil); a.body != `{"name":"x/y","tags":[]}` {
		t.Errorf("no tags: %s", a.body)
	}
	if a := m.want(t, 200, "GET", "/v2/_catalog", nil); a.body != `{"repositories":["x/y"]}` {
		t.Errorf("catalog %s", a.body)
	}
	m.want(t, 405, "DELETE", "/v2/x/y/blobs/"+digest.FromString("content of b").String(), nil)
	m.want(t, 202, "DELETE", "/v2/x/y/manifests/b", nil)
	m.want(t, 404, "GET", "/v2/x/y/manifests/b", nil)
	m.want(t, 202, "DELETE", "/v2/x/y/manifests/"+last.String(), nil)
	m.want(t, 404, "HEAD", "/v2/x/y/manifests/a", nil)
	m.want(t, 404, "DELETE", "/v2/x/y/manifests/"+last.String(), nil)
	if a := m.want(t, 200, "GET", "/v2/x/y/tags/list", nil); a.body != `{"name":"x/y","tags":["c"]}` {
		t.Errorf("after deletions: %s", a.body)
	}
}

func TestReferrers(t *testing.T) {
	m := newMachine(t)
	subject := m.artifact(t, "r", "app", "app", nil)
	ref := &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 1}
	m.artifact(t, "r", "", "sbom", ref)
	m.artifact(t, "r", "", "signature", ref)
	for query, want := range map[string]int{"": 2, "?artifactType=test/sbom": 1, "?artifactType=none": 0} {
		a := m.want(t, 200, "GET", "/v2/r/referrers/"+subject.String()+query, nil)
		var index ocispec.Index
		if err := json.Unmarshal([]byte(a.body), &index); err != nil || len(index.Manifests) != want {
			t.Errorf("referrers%s = %s, %v; want %d", query, a.body, err, want)
		}
		if query != "" && a.header.Get("OCI-Filters-Applied") != "artifactType" {
			t.Errorf("referrers%s does not say that it filtered", query)
		}
	}
	if a := m.want(t, 200, "GET", "/v2/nowhere/referrers/"+subject.String(), nil); !strings.Contains(a.body, `"manifests":[]`) {
		t.Errorf("referrers in an unknown repository: %s", a.body)
	}
}

func TestErrors(t *testing.T) {
	m := newMachine(t)
	unknown := digest.FromString("unknown").String()
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v2/r/manifests/none", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/r/manifests/" + unknown, "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/r/blobs/" + unknown, "", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/r/blobs/sha256:short", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/r/tags/list", "", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/UPPER/tags/list", "", 400, "NAME_INVALID"},
		{"GET", "/v2/../etc/manifests/passwd", "", 400, "NAME_INVALID"},
		{"PUT", "/v2/r/manifests/1", "not json", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/r/manifests/" + unknown, "{}", 400, "DIGEST_INVALID"},
		{"PUT", "/v2/r/manifests/1", `{"mediaType":"other/type"}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/r/manifests/1", `{"config":{"digest":"bad"}}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/r/manifests/1", strings.Repeat(" ", maxManifest+1), 413, "SIZE_INVALID"},
		{"PATCH", "/v2/r/blobs/uploads/none", "x", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"POST", "/v2/r/manifests/1", "", 405, "UNSUPPORTED"},
		{"GET", "/v2/r/blobs/uploads/", "", 405, "UNSUPPORTED"},
		{"GET", "/v2/r/tags/other", "", 404, "UNSUPPORTED"},
	} {
		req := httptest.NewRequest(tt.method, "http://r.example"+tt.path, strings.NewReader(tt.body))
		req.URL.Path = tt.path // as it is: no cleaning on the way
		req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
		rec := httptest.NewRecorder()
		New(Options{Repositories: m.Repositories()}).ServeHTTP(rec, req)
		if rec.Code != tt.status || !strings.Contains(rec.Body.String(), `"`+tt.code+`"`) {
			t.Errorf("%s %s = %d %s; want %d %s", tt.method, tt.path, rec.Code, rec.Body, tt.status, tt.code)
		}
	}
	m.want(t, 200, "GET", "/v2/", nil)
}

// A page in a browser on this machine reaches localhost: it must not reach the registry there.
func TestWebPagesAreRefused(t *testing.T) {
	m := newMachine(t)
	own := strings.TrimPrefix(m.url, "http://")
	port := own[strings.LastIndexByte(own, ':'):]
	const browser = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"
	for _, tt := range []struct {
		name, host, origin, agent string
		want                      int
	}{
		{"docker", own, "", "docker/29.0.0", 200},
		{"docker by another name of this machine", "registry.lan" + port, "", "docker/29.0.0", 200},
		{"a person who looks", "localhost" + port, "", browser, 200},
		{"a person who looks by address", own, "", browser, 200},
		{"a page of the registry's own origin", own, "http://" + own, browser, 200},
		{"a page of another site", own, "https://evil.example", browser, 403},
		{"a page without an origin", own, "null", browser, 403},
		{"a name that was rebound, writing", "evil.example" + port, "http://evil.example" + port, browser, 403},
		{"a name that was rebound, reading", "evil.example" + port, "", browser, 403},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", m.url+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tt.host
		req.Header.Set("User-Agent", tt.agent)
		if tt.origin != "" {
			req.Header.Set("Origin", tt.origin)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s: status %d; want %d", tt.name, resp.StatusCode, tt.want)
		}
	}
}
