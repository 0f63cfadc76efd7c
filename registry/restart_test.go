package registry

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

// restart closes the store and opens it again, as a new daemon does.
func (m *machine) restart(t *testing.T, root string) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	fresh, err := image.Open(t.Context(), image.Options{Root: root, Registries: func(h string) bool { return h == m.host }})
	if err != nil {
		t.Fatal(err)
	}
	m.Store = fresh
}

func TestWhatWasPushedSurvivesARestart(t *testing.T) {
	root := t.TempDir()
	m := newMachineIn(t, root)
	pushed := m.artifact(t, "r", "1", "layer", nil)
	loose := m.blob(t, "r", "not listed yet")
	local := m.importImage(t, m.host+"/own:1")
	if err := m.Push(t.Context(), m.host+"/own:1", image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	unfinished := m.want(t, 202, "POST", "/v2/r/blobs/uploads/", nil).header.Get("Location")
	m.want(t, 202, "PATCH", unfinished, []byte("half"))
	m.restart(t, root)
	if err := m.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.want(t, 200, "GET", "/v2/r/manifests/1", nil)
	m.want(t, 200, "GET", "/v2/r/manifests/"+pushed.String(), nil)
	m.want(t, 200, "GET", "/v2/r/blobs/"+digest.FromString("layer").String(), nil)
	m.want(t, 200, "GET", "/v2/r/blobs/"+loose.String(), nil)
	m.want(t, 404, "GET", "/v2/other/blobs/"+loose.String(), nil)
	m.want(t, 200, "GET", "/v2/own/manifests/1", nil)
	m.want(t, 200, "GET", "/v2/own/blobs/"+local.Manifest.Layers[0].Digest.String(), nil)
	m.want(t, 404, "PUT", unfinished+"?digest="+digest.FromString("half").String(), nil)

	m.want(t, 202, "DELETE", "/v2/r/manifests/"+pushed.String(), nil)
	m.want(t, 202, "DELETE", "/v2/r/blobs/"+loose.String(), nil)
	m.restart(t, root)
	m.want(t, 404, "GET", "/v2/r/manifests/1", nil)
	m.want(t, 404, "GET", "/v2/r/blobs/"+loose.String(), nil)
}

// imageOf puts an image for one platform into a repository, under its digest only.
func (m *machine) imageOf(t *testing.T, repo string, p ocispec.Platform, body string) ocispec.Descriptor {
	t.Helper()
	layer := rootfs(t, map[string]string{"hello": body})
	created := time.Unix(1700000000, 0).UTC()
	config, err := json.Marshal(ocispec.Image{Created: &created, Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: m.blob(t, repo, string(config)), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: m.blob(t, repo, string(layer)), Size: int64(len(layer))}}})
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &p}
	m.want(t, 201, "PUT", "/v2/"+repo+"/manifests/"+d.Digest.String(), raw, "Content-Type", d.MediaType)
	return d
}

// An index is an image of this machine by its entry for this platform.
func TestImageForSeveralPlatforms(t *testing.T) {
	server, other := newMachine(t), newMachine(t)
	host := platforms.DefaultSpec()
	foreign := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	raw, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		server.imageOf(t, "multi", foreign, "hello foreign"), server.imageOf(t, "multi", host, "hello hello here"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	server.want(t, 201, "PUT", "/v2/multi/manifests/1", raw, "Content-Type", ocispec.MediaTypeImageIndex)
	readable(t, server, server.host+"/multi:1")
	if a := server.want(t, 200, "GET", "/v2/multi/manifests/1", nil); !bytes.Equal([]byte(a.body), raw) {
		t.Error("the index comes back as other bytes")
	}
	img, err := other.Pull(t.Context(), server.host+"/multi:1", image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Platform.Architecture != host.Architecture || img.RepoDigests[0] != server.host+"/multi@"+digest.FromBytes(raw).String() {
		t.Errorf("pulled %v, %q; want this machine's platform and the index's digest", img.Platform, img.RepoDigests)
	}
	readable(t, other, server.host+"/multi:1")
	img, err = other.Pull(t.Context(), server.host+"/multi:1", image.PullOptions{Platform: &foreign})
	if err != nil || img.Platform.Architecture != "s390x" {
		t.Errorf("pulled %v, %v; want s390x", img.Platform, err)
	}
	if _, err := other.Pull(t.Context(), server.host+"/multi:1", image.PullOptions{Platform: &ocispec.Platform{OS: "plan9", Architecture: "mips"}}); err == nil {
		t.Error("a platform that is not there was pulled")
	}
}
