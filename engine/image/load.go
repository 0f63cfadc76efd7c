package image

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocuments bounds what is kept in memory of one archive: manifests, configurations, names and links.
const maxDocuments = 64 << 20

// Load reads images out of a tar that `docker save` or an OCI tool wrote, compressed or
// not, and returns their names, or ids where they have none. The tar is read once, from
// front to back, and each layer is unpacked while it goes by. Nothing of a damaged or
// hostile archive remains, and no name is written before everything is on disk.
func (s *Store) Load(ctx context.Context, r io.Reader, progress ProgressFunc) ([]string, error) {
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	a := &loadArchive{store: s, documents: map[string][]byte{}, links: map[string]string{}, layers: map[string]*loadedLayer{}, progress: progress, share: &share{cpu: s.cpu}}
	defer a.close()
	if err := a.read(ctx, &patientReader{r: r, ctx: ctx, share: a.share}); err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	found, err := a.images()
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	names, err := a.store.commitLoaded(ctx, a, found)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return names, nil
}

func (s *Store) commitLoaded(ctx context.Context, a *loadArchive, found []loadedImage) ([]string, error) {
	targets := make([]ocispec.Descriptor, len(found))
	for i, f := range found {
		var err error
		if targets[i], err = a.stack(ctx, f); err != nil {
			return nil, fmt.Errorf("image %s: %w", f, err)
		}
	}
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	var names []string
	for i, f := range found {
		if err := s.name(ctx, targets[i], f.tags, nil); err != nil {
			return nil, err
		}
		names = append(names, f.shown(targets[i].Digest)...)
		s.announce(ctx, "load", targets[i], f.String())
	}
	return names, nil
}

// loadArchive is an archive as far as it has been read.
type loadArchive struct {
	store     *Store
	documents map[string][]byte // small JSON members, by clean name
	held      int               // bytes in documents, names and links
	links     map[string]string
	layers    map[string]*loadedLayer
	progress  ProgressFunc
	share     *share // of the processors, while a layer is unpacked
}

// loadedLayer is a member of the archive that was a tar.
type loadedLayer struct {
	*unpacked
	blob digest.Digest // of the member as it is, compressed or not
	used bool          // the draft became a layer
}

// loadedImage is one image that the archive describes, not yet checked against its layers.
type loadedImage struct {
	tags   []string // full names
	config []byte
	layers []*loadedLayer
}

func (i loadedImage) String() string {
	if len(i.tags) == 0 {
		return "without a name"
	}
	return familiar(i.tags[0])
}

func (i loadedImage) shown(id digest.Digest) []string {
	if len(i.tags) == 0 {
		return []string{id.String()}
	}
	names := make([]string, len(i.tags))
	for n, t := range i.tags {
		names[n] = familiar(t)
	}
	return names
}

func (a *loadArchive) close() {
	for _, l := range a.layers {
		if !l.used {
			l.draft.Discard()
		}
	}
}

func (a *loadArchive) read(ctx context.Context, r io.Reader) error {
	in, err := Decompress(r)
	if err != nil {
		return err
	}
	defer in.Close()
	tr := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return named(fmt.Errorf("read archive: %w", err))
		}
		if n >= a.store.limits.Entries {
			return fmt.Errorf("archive has more than %d members: %w", n, errdefs.ErrResourceExhausted)
		}
		if err := a.member(ctx, h, tr); err != nil {
			return fmt.Errorf("member %q: %w", h.Name, named(err))
		}
	}
}

// member takes in one file of the archive. Names are keys here, never paths on disk.
func (a *loadArchive) member(ctx context.Context, h *tar.Header, r io.Reader) error {
	name := path.Clean("/" + h.Name)[1:]
	switch h.Typeflag {
	case tar.TypeSymlink: // older Dockers link a layer that two images share
		a.links[name] = path.Clean("/" + path.Join(path.Dir(name), h.Linkname))[1:]
		return a.hold(len(name) + len(h.Linkname))
	case tar.TypeLink:
		a.links[name] = path.Clean("/" + h.Linkname)[1:]
		return a.hold(len(name) + len(h.Linkname))
	case tar.TypeReg:
	default:
		return nil // directories; devices and the like mean nothing here and are not made
	}
	if _, twice := a.layers[name]; twice || a.documents[name] != nil {
		return fmt.Errorf("is there twice: %w", errdefs.ErrInvalidArgument)
	}
	if err := a.hold(len(name)); err != nil {
		return err
	}
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case compression(head) != "" || looksLikeTar(head):
		return a.layer(ctx, name, h.Size, b)
	case h.Size <= maxDocument:
		return a.document(name, b)
	}
	return nil // some large blob that no image here can be made of
}

func (a *loadArchive) document(name string, r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	a.documents[name] = raw
	return a.hold(len(raw))
}

// hold counts what is kept in memory.
func (a *loadArchive) hold(n int) error {
	if a.held += n; a.held > maxDocuments {
		return fmt.Errorf("manifests, configurations and names of the archive are longer than %d bytes: %w", maxDocuments, errdefs.ErrResourceExhausted)
	}
	return nil
}

func (a *loadArchive) layer(ctx context.Context, name string, size int64, r io.Reader) error {
	blob := digest.Canonical.Digester()
	raw := io.TeeReader(a.progress.reader(r, Progress{ID: shortLayer(name), Status: "Loading layer", Total: size}), blob.Hash())
	in, err := Decompress(raw)
	if err != nil {
		return err
	}
	defer in.Close()
	u, err := a.store.unpack(ctx, a.share, in, nil)
	if err != nil {
		return err
	}
	a.layers[name] = &loadedLayer{unpacked: u}
	if _, err := io.Copy(io.Discard, raw); err != nil { // what follows the compressed data
		return err
	}
	a.layers[name].blob = blob.Digest()
	return nil
}

// shortLayer is how a member is called in a progress line.
func shortLayer(name string) string {
	return short(path.Base(strings.TrimSuffix(name, "/layer.tar")))
}

// images finds out what the archive describes. The OCI index goes first: it carries
// digests, and several platforms.
func (a *loadArchive) images() ([]loadedImage, error) {
	if raw, ok := a.documents[ocispec.ImageIndexFile]; ok {
		return a.ociImages(raw)
	}
	if raw, ok := a.documents["manifest.json"]; ok {
		return a.dockerImages(raw)
	}
	return nil, fmt.Errorf("the archive has neither manifest.json nor index.json: it was not written by `docker save` or an OCI tool (use import for a plain root file system): %w", errdefs.ErrInvalidArgument)
}

// dockerManifest is one element of a docker-archive's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *loadArchive) dockerImages(raw []byte) ([]loadedImage, error) {
	var list []dockerManifest
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("manifest.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	found := make([]loadedImage, 0, len(list))
	for _, m := range list {
		img, err := a.dockerImage(m)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: %w", err)
		}
		found = append(found, img)
	}
	return found, nil
}

func (a *loadArchive) dockerImage(m dockerManifest) (loadedImage, error) {
	tags, err := parseTags(m.RepoTags)
	if err != nil {
		return loadedImage{}, err
	}
	config, ok := a.documents[path.Clean("/" + m.Config)[1:]]
	if !ok {
		return loadedImage{}, fmt.Errorf("configuration %q is not in the archive: %w", m.Config, errdefs.ErrInvalidArgument)
	}
	img := loadedImage{tags: tags, config: config}
	for _, name := range m.Layers {
		l, err := a.find(name)
		if err != nil {
			return loadedImage{}, err
		}
		img.layers = append(img.layers, l)
	}
	return img, nil
}

// find returns the layer at a name, following links; a loop of links has an end.
func (a *loadArchive) find(name string) (*loadedLayer, error) {
	at := path.Clean("/" + name)[1:]
	for range 8 {
		if l, ok := a.layers[at]; ok {
			return l, nil
		}
		next, ok := a.links[at]
		if !ok {
			break
		}
		at = next
	}
	return nil, fmt.Errorf("layer %q is not in the archive, or is no tar: %w", name, errdefs.ErrInvalidArgument)
}

func (a *loadArchive) ociImages(raw []byte) ([]loadedImage, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	byDigest := map[digest.Digest]int{}
	var found []loadedImage
	for _, d := range index.Manifests {
		tags, err := ociNames(d)
		if err != nil {
			return nil, fmt.Errorf("index.json: %w", err)
		}
		if n, ok := byDigest[d.Digest]; ok { // one entry per name
			found[n].tags = append(found[n].tags, tags...)
			continue
		}
		img, ok, err := a.ociImage(d, 0)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue // an attestation, or some other artifact
		}
		img.tags = tags
		byDigest[d.Digest] = len(found)
		found = append(found, img)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("index.json lists no image for this platform (%s): %w", platforms.DefaultString(), errdefs.ErrInvalidArgument)
	}
	return found, nil
}

// ociNames reads the name that Docker and containerd give an entry of index.json. The
// specification's own annotation may be a bare tag, which names nothing.
func ociNames(d ocispec.Descriptor) ([]string, error) {
	if full := d.Annotations[images.AnnotationImageName]; full != "" {
		return parseTags([]string{full})
	}
	if ref := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(ref, ":/") {
		return parseTags([]string{ref})
	}
	return nil, nil
}

// ociImage reads the image that a descriptor of an OCI layout leads to; ok is false where
// it leads to something that is no image.
func (a *loadArchive) ociImage(d ocispec.Descriptor, depth int) (_ loadedImage, ok bool, err error) {
	raw, err := a.blob(d)
	if err != nil {
		return loadedImage{}, false, err
	}
	if images.IsIndexType(d.MediaType) {
		return a.ociIndex(d, raw, depth)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return loadedImage{}, false, fmt.Errorf("manifest %s: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if !isManifestType(d.MediaType) || !images.IsConfigType(m.Config.MediaType) || d.Annotations["vnd.docker.reference.type"] != "" {
		return loadedImage{}, false, nil
	}
	config, err := a.blob(m.Config)
	if err != nil {
		return loadedImage{}, false, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	img := loadedImage{config: config}
	for _, l := range m.Layers {
		layer, err := a.find(blobPath(l.Digest))
		if err != nil {
			return loadedImage{}, false, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if layer.blob != l.Digest {
			return loadedImage{}, false, mismatch("layer", l.Digest, layer.blob)
		}
		img.layers = append(img.layers, layer)
	}
	return img, true, nil
}

// ociIndex chooses this machine's platform out of an index, among those that the archive
// has the content of.
func (a *loadArchive) ociIndex(d ocispec.Descriptor, raw []byte, depth int) (loadedImage, bool, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return loadedImage{}, false, fmt.Errorf("index %s: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if depth >= 4 {
		return loadedImage{}, false, fmt.Errorf("index %s is nested too deeply: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	best, ok := bestManifest(index.Manifests, platforms.Default(), func(m ocispec.Descriptor) bool {
		return a.documents[blobPath(m.Digest)] != nil
	})
	if !ok {
		return loadedImage{}, false, fmt.Errorf("index %s has no image for this platform (%s) in the archive: %w", d.Digest, platforms.DefaultString(), errdefs.ErrNotFound)
	}
	return a.ociImage(best, depth+1)
}

// bestManifest chooses the entry of an index that suits a platform best.
func bestManifest(list []ocispec.Descriptor, want platforms.MatchComparer, usable func(ocispec.Descriptor) bool) (best ocispec.Descriptor, ok bool) {
	for _, m := range list {
		if m.Annotations["vnd.docker.reference.type"] != "" || !usable(m) {
			continue
		}
		if m.Platform != nil && !want.Match(*m.Platform) {
			continue
		}
		if !ok || best.Platform == nil || m.Platform != nil && want.Less(*m.Platform, *best.Platform) {
			best, ok = m, true
		}
	}
	return best, ok
}

func blobPath(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + strings.Replace(d.String(), ":", "/", 1)
}

// blob returns a document of an OCI layout, checked.
func (a *loadArchive) blob(d ocispec.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	raw, ok := a.documents[blobPath(d.Digest)]
	if !ok {
		return nil, fmt.Errorf("blob %s is not in the archive: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return nil, mismatch("blob", d.Digest, got)
	}
	return raw, nil
}

func mismatch(what string, want, got digest.Digest) error {
	return fmt.Errorf("%s %s: content has digest %s, so it is damaged or was tampered with: %w", what, want, got, errdefs.ErrInvalidArgument)
}

// stack checks an image's layers against its configuration and makes the image of them.
func (a *loadArchive) stack(ctx context.Context, img loadedImage) (ocispec.Descriptor, error) {
	var config struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(img.config, &config); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(config.RootFS.DiffIDs) != len(img.layers) {
		return ocispec.Descriptor{}, fmt.Errorf("configuration lists %d layers, manifest %d: %w", len(config.RootFS.DiffIDs), len(img.layers), errdefs.ErrInvalidArgument)
	}
	var top digest.Digest
	for i, l := range img.layers {
		if want := config.RootFS.DiffIDs[i]; l.diffID != want {
			return ocispec.Descriptor{}, mismatch(fmt.Sprintf("layer %d", i+1), want, l.diffID)
		}
		placed, err := a.place(ctx, l, top)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		top = placed.ChainID
	}
	return a.store.writeLocal(ctx, img.config, top)
}

// place puts a layer of the archive on a parent. The first place gets the unpacked files;
// another image that has the layer on other parents gets a copy of them.
func (a *loadArchive) place(ctx context.Context, l *loadedLayer, parent digest.Digest) (Layer, error) {
	if !l.used {
		l.used = true
		return l.adopt(ctx, parent)
	}
	return a.store.restack(ctx, l.diffID, parent)
}
