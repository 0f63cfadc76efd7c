package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/build/snapshot"
	"slipway.dev/slipway/engine/image"
)

// exports remembers which image a configuration over a chain became, so that a rebuild
// with nothing new writes nothing. The zero value is empty.
type exports struct {
	mu   sync.Mutex // guards ids
	ids  map[digest.Digest]digest.Digest
	list []digest.Digest // keys of ids, oldest first
}

const maxExports = 1000

func (x *exports) get(key digest.Digest) (digest.Digest, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	id, ok := x.ids[key]
	return id, ok
}

func (x *exports) put(key, id digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ids == nil {
		x.ids = map[digest.Digest]digest.Digest{}
	}
	if _, ok := x.ids[key]; !ok {
		x.list = append(x.list, key)
	}
	x.ids[key] = id
	if len(x.list) > maxExports {
		delete(x.ids, x.list[0])
		x.list = x.list[1:]
	}
}

// export writes the image that the front end described over the layers that were solved.
func (b *Builder) export(ctx context.Context, res *gwclient.Result, snap *snapshot.Snapshot, tags []string) (*Result, error) {
	if snap.View != nil {
		return nil, errors.New("the result of the build is its context: a Dockerfile has at least one FROM")
	}
	config, err := finalConfig(res, snap)
	if err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	names, err := normalize(tags)
	if err != nil {
		return nil, err
	}
	key := digest.FromBytes(append([]byte(snap.Chain()+"\n"), config...))
	if img, ok := b.unchanged(ctx, key, names); ok {
		return &Result{ImageID: img.ID, Image: img}, nil
	}
	before := b.o.Now()
	img, err := b.o.Images.WriteImage(ctx, config, snap.Chain(), names)
	if err != nil {
		return nil, err
	}
	b.store.Durable(before) // WriteImage has flushed everything that was written before it
	b.exports.put(key, img.ID)
	b.o.Images.Announce(ctx, img, names)
	return &Result{ImageID: img.ID, Image: img}, nil
}

func normalize(tags []string) ([]string, error) {
	out := make([]string, 0, len(tags))
	for _, t := range tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return nil, fmt.Errorf("invalid tag %q: %w", t, err)
		}
		out = append(out, reference.FamiliarString(reference.TagNameOnly(named)))
	}
	return out, nil
}

// unchanged returns the image that an earlier export wrote, if it still has these names.
func (b *Builder) unchanged(ctx context.Context, key digest.Digest, names []string) (image.Image, bool) {
	id, ok := b.exports.get(key)
	if !ok {
		return image.Image{}, false
	}
	img, err := b.o.Images.Get(ctx, id.String())
	if err != nil {
		return image.Image{}, false
	}
	has := map[string]bool{}
	for _, n := range img.Names {
		has[n] = true
	}
	for _, n := range names {
		if !has[n] {
			return image.Image{}, false
		}
	}
	return img, true
}

// finalConfig completes the configuration with layers, history and creation time, in the
// way that BuildKit's image exporter does, and keeps every field it does not know.
func finalConfig(res *gwclient.Result, snap *snapshot.Snapshot) ([]byte, error) {
	data := res.Metadata[exptypes.ExporterImageConfigKey]
	var img ocispec.Image
	if err := json.Unmarshal(data, &img); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	rootfs := ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, l := range snap.Layers {
		rootfs.DiffIDs = append(rootfs.DiffIDs, l.DiffID)
	}
	history := withTimes(img.History, snap.Layers)
	epoch, err := epochOf(res)
	if err != nil {
		return nil, err
	}
	created := img.Created
	if epoch != nil {
		clamp(history, res.Metadata[exptypes.ExporterImageBaseConfigKey], *epoch)
		if created != nil && created.After(*epoch) {
			created = epoch
		}
	}
	if created == nil {
		for _, h := range history {
			if h.Created != nil {
				created = h.Created
			}
		}
	}
	for name, value := range map[string]any{"rootfs": rootfs, "history": history, "created": created} {
		if name == "created" && created == nil {
			continue
		}
		if fields[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}

// withTimes gives every entry of the history its time: an entry with a layer that layer's,
// an entry without the time of what came before it.
func withTimes(history []ocispec.History, layers []snapshot.Layer) []ocispec.History {
	history = matchLayers(append([]ocispec.History{}, history...), layers)
	n := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if history[i].Created == nil {
			history[i].Created = layers[n].Created
		}
		n++
	}
	// The first new layer's time, or the last there is.
	var created *time.Time
	missing := false
	for _, h := range history {
		if h.Created == nil {
			missing = true
			continue
		}
		created = h.Created
		if missing {
			break
		}
	}
	missing = false
	for i := range history {
		if history[i].Created == nil {
			missing = true
			history[i].Created = created
		} else if missing {
			created = history[i].Created
		}
	}
	return history
}

// matchLayers makes the history name as many layers as there are.
func matchLayers(history []ocispec.History, layers []snapshot.Layer) []ocispec.History {
	n := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if n == len(layers) {
			history[i].EmptyLayer = true // a base image that claims more layers than it has
			continue
		}
		n++
	}
	for ; n < len(layers); n++ {
		history = append(history, ocispec.History{Created: layers[n].Created, CreatedBy: layers[n].Description, Comment: "slipway"})
	}
	return history
}

func epochOf(res *gwclient.Result) (*time.Time, error) {
	data := res.Metadata[commonexptypes.ExporterEpochKey]
	if len(data) == 0 {
		return nil, nil
	}
	sec, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH %q: %w", data, err)
	}
	t := time.Unix(sec, 0).UTC()
	return &t, nil
}

// clamp moves times after the epoch back to it, except those of the base image.
func clamp(history []ocispec.History, baseConfig []byte, epoch time.Time) {
	var base ocispec.Image
	if len(baseConfig) > 0 {
		_ = json.Unmarshal(baseConfig, &base) // no base: nothing to spare
	}
	same := true
	for i, h := range history {
		same = same && i < len(base.History) && reflect.DeepEqual(h, base.History[i])
		if !same && (h.Created == nil || h.Created.After(epoch)) {
			history[i].Created = &epoch
		}
	}
}
