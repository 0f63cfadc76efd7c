package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

// A request that Docker's API or the registry answered is done, whatever happens next: made objects are there and as they were
// made, removed ones stay away.
func TestAcknowledgedObjectsSurvive(t *testing.T) {
	networktest.NewMachine(t)
	d := harness.Start(t)
	d.BaseImage(t)
	pick := random(t)
	o := &objects{t: t, d: d, http: d.DockerHTTP(), registry: fmt.Sprintf("localhost:%d", d.Record.RegistryPort), is: map[string]string{}}
	o.http.Timeout = patience
	for round := range rounds(t) {
		ctx, cancel := context.WithCancel(t.Context())
		var workers sync.WaitGroup
		for worker := range 4 {
			workers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					o.live(ctx, fmt.Sprintf("r%dw%di%d", round, worker, i))
				}
			})
		}
		time.Sleep(time.Duration(300+pick.IntN(900)) * time.Millisecond) // not to wait for anything: this is the random moment
		d.Kill()
		cancel()
		workers.Wait()
		d.Launch()
		o.verify(round)
		if t.Failed() {
			t.FailNow()
		}
	}
	if ids := strings.Fields(d.Docker(t, "ps", "-aq")); len(ids) > 0 {
		d.Docker(t, append([]string{"rm", "-f"}, ids...)...)
	}
}

// objects makes, changes and removes things, and keeps what was acknowledged of each: how it is, or that it is gone.
// What a request that failed was about is unknown, and forgotten.
type objects struct {
	t        *testing.T
	d        *harness.Daemon
	http     *http.Client
	registry string

	mu      sync.Mutex
	is      map[string]string // path -> what has to be in the answer; empty: not found
	subnets int               // used: there are more networks here than Docker has ranges for
}

func (o *objects) subnet() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.subnets++
	return fmt.Sprintf("10.77.%d.%d/29", o.subnets/32, o.subnets%32*8)
}

func (o *objects) note(path, content string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.is[path] = content
}

func (o *objects) forget(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.is, path)
}

// request makes a request; nil is no answer, and then nothing is known about the objects at the paths that it concerns.
func (o *objects) request(ctx context.Context, method, url string, body any, concerned ...string) (answer []byte) {
	for _, path := range concerned {
		o.forget(path)
	}
	raw, isRaw := body.([]byte)
	media := ocispec.MediaTypeImageManifest
	if !isRaw {
		raw, _ = json.Marshal(body) // of maps and strings
		media = "application/json"
	}
	if strings.HasPrefix(url, "/") {
		url = "http://docker" + url
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(raw))
	if err != nil {
		return nil
	}
	req.Header.Set("Content-Type", media)
	client := o.http
	if strings.HasPrefix(url, "http://localhost") {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		return nil
	}
	if resp.StatusCode/100 != 2 {
		o.t.Errorf("%s %s = %s %s", method, url, resp.Status, answer)
		return nil
	}
	return append(answer, '\n') // never nil
}

// live makes one of everything, changes it, and removes half of it again.
func (o *objects) live(ctx context.Context, name string) {
	image, network, volume, container := "/images/tagged:"+name+"/json", "/networks/n"+name, "/volumes/v"+name, "/containers/c"+name+"/json"
	done := func(answer []byte, path, content string) bool {
		if answer != nil {
			o.note(path, content)
		}
		return answer != nil
	}
	if !done(o.request(ctx, "POST", "/volumes/create", map[string]any{"Name": "v" + name, "Labels": map[string]string{"of": name}}, volume), volume, `"of":"`+name+`"`) {
		return
	}
	if !done(o.request(ctx, "POST", "/networks/create", map[string]any{"Name": "n" + name, "IPAM": map[string]any{"Config": []any{map[string]string{"Subnet": o.subnet()}}}}, network), network, `"Name":"n`+name+`"`) {
		return
	}
	if !done(o.request(ctx, "POST", "/images/"+harness.Base+"/tag?repo=tagged&tag="+name, nil, image), image, "tagged:"+name) {
		return
	}
	create := map[string]any{"Image": "tagged:" + name, "Cmd": []string{"sleep", "inf"}, "HostConfig": map[string]any{"Binds": []string{"v" + name + ":/data"}}}
	old := "/containers/old" + name + "/json"
	if !done(o.request(ctx, "POST", "/containers/create?name=old"+name, create, old), old, `"Image":"tagged:`+name+`"`) {
		return
	}
	if o.request(ctx, "POST", "/containers/old"+name+"/rename?name=c"+name, nil, old, container) == nil {
		return
	}
	o.note(old, "")
	o.note(container, `"Image":"tagged:`+name+`"`)
	if !done(o.request(ctx, "POST", "/containers/c"+name+"/update", map[string]any{"RestartPolicy": map[string]any{"Name": "on-failure", "MaximumRetryCount": 7}}, container), container, `"MaximumRetryCount":7`) {
		return
	}
	if !done(o.request(ctx, "POST", "/networks/n"+name+"/connect", map[string]any{"Container": "c" + name}, container), container, `"n`+name+`":{`) {
		return
	}
	committed := "/images/committed:" + name + "/json"
	if !done(o.request(ctx, "POST", "/commit?container=c"+name+"&repo=committed&tag="+name, nil, committed), committed, "committed:"+name) {
		return
	}
	if !o.push(ctx, name) || len(name)%2 == 0 {
		return
	}
	for _, r := range []struct{ url, path string }{
		{"/containers/c" + name, container}, {"/volumes/v" + name, volume}, {"/networks/n" + name, network}, {"/images/tagged:" + name, image},
		{"http://" + o.registry + "/v2/pushed/manifests/" + name, "http://" + o.registry + "/v2/pushed/manifests/" + name},
	} {
		if !done(o.request(ctx, "DELETE", r.url, nil, r.path), r.path, "") {
			return
		}
	}
}

// push puts an artifact into the registry as any client does.
func (o *objects) push(ctx context.Context, name string) bool {
	base := "http://" + o.registry + "/v2/pushed"
	blob := []byte("blob of " + name)
	sum := digest.FromBytes(blob)
	if o.request(ctx, "POST", base+"/blobs/uploads/?digest="+sum.String(), blob) == nil {
		return false
	}
	o.note(base+"/blobs/"+sum.String(), string(blob))
	manifest, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "test/" + name,
		Config: ocispec.Descriptor{MediaType: "text/plain", Digest: sum, Size: int64(len(blob))}, Layers: []ocispec.Descriptor{}})
	if err != nil {
		o.t.Error(err)
		return false
	}
	at := base + "/manifests/" + name
	if o.request(ctx, "PUT", at, manifest, at) == nil {
		return false
	}
	o.note(at, "test/"+name)
	return true
}

func (o *objects) verify(round int) {
	o.t.Helper()
	gone := 0
	for _, path := range slices.Sorted(maps.Keys(o.is)) {
		want, url, client := o.is[path], path, http.DefaultClient
		if strings.HasPrefix(path, "/") {
			url, client = "http://docker"+path, o.http
		}
		req, err := http.NewRequestWithContext(o.t.Context(), http.MethodGet, url, nil)
		if err != nil {
			o.t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			o.t.Fatalf("round %d: %v", round, err)
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			o.t.Errorf("round %d: %v", round, err)
		case want == "" && resp.StatusCode != http.StatusNotFound:
			o.t.Errorf("round %d: %s was removed and answers %s", round, path, resp.Status)
		case want != "" && (resp.StatusCode != http.StatusOK || !bytes.Contains(raw, []byte(want))):
			o.t.Errorf("round %d: %s was acknowledged with %s and answers %s %s", round, path, want, resp.Status, raw)
		}
		if want == "" {
			gone++
		}
	}
	o.t.Logf("round %d: %d objects acknowledged, %d of them removed again", round, len(o.is), gone)
}
