package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/tree"
)

// Labels of a committed snapshot: what the layer in it is as a tar.
const (
	labelDiffID = "slipway.dev/layer.diff-id"
	labelSize   = "slipway.dev/layer.size"
	// labelUpper is where containerd's overlay snapshotter says the directory is.
	labelUpper = "containerd.io/snapshot/overlay.upperdir"
)

// overlayOptions of every mount of ours that writes a layer. The first three keep the
// directory readable as a layer, whatever the kernel's defaults are: a metadata-only copy
// would be digested as an empty file, a redirect as nothing. A draft is made durable by
// one syncfs at its commit, so the mount need not flush the file system when it goes.
var overlayOptions = []string{"metacopy=off", "redirect_dir=off", "index=off", "volatile"}

// Layer is one unpacked layer on top of a particular chain of others.
type Layer struct {
	ChainID digest.Digest
	Parent  digest.Digest // chain id below; empty for a first layer
	DiffID  digest.Digest // digest of the uncompressed tar
	Dir     string        // overlay upper directory; must never change
	Size    int64         // length of the uncompressed tar
}

// Chain is the root file system of an image, as directories.
type Chain struct {
	ChainID digest.Digest
	Lower   []string // top-most first, ready for overlay's lowerdir; empty for an image with no layers
	Layers  []Layer  // bottom first, as manifests list them
}

// layerIndex is the mirror in memory of all committed snapshots. Its size is bounded by
// theirs. The zero value is empty.
type layerIndex struct {
	mu      sync.RWMutex
	byChain map[digest.Digest]Layer
	byDiff  map[digest.Digest][]digest.Digest // chain ids
}

func (x *layerIndex) reload(ctx context.Context, s snapshots.Snapshotter) error {
	present, err := committed(ctx, s)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byChain, x.byDiff = map[digest.Digest]Layer{}, map[digest.Digest][]digest.Digest{}
	for _, l := range present {
		x.putLocked(l)
	}
	return nil
}

func committed(ctx context.Context, s snapshots.Snapshotter) (map[digest.Digest]Layer, error) {
	present := map[digest.Digest]Layer{}
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		l, err := layerOf(info)
		present[l.ChainID] = l
		return err
	})
	if errdefs.IsNotFound(err) { // nothing was ever written
		err = nil
	}
	return present, err
}

// forgetCollected drops what the collector removed. Layers that are committed while this
// runs are not looked at.
func (x *layerIndex) forgetCollected(ctx context.Context, s snapshots.Snapshotter) error {
	before := x.all()
	present, err := committed(ctx, s)
	if err != nil {
		return err
	}
	var gone []digest.Digest
	for _, l := range before {
		if _, ok := present[l.ChainID]; !ok {
			gone = append(gone, l.ChainID)
		}
	}
	x.drop(gone)
	return nil
}

func (x *layerIndex) drop(chains []digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range chains {
		l := x.byChain[c]
		delete(x.byChain, c)
		x.byDiff[l.DiffID] = slices.DeleteFunc(x.byDiff[l.DiffID], func(o digest.Digest) bool { return o == c })
		if len(x.byDiff[l.DiffID]) == 0 {
			delete(x.byDiff, l.DiffID)
		}
	}
}

func layerOf(info snapshots.Info) (Layer, error) {
	size, err := strconv.ParseInt(info.Labels[labelSize], 10, 64)
	if err != nil {
		return Layer{}, fmt.Errorf("layer %s: damaged record: size %q", info.Name, info.Labels[labelSize])
	}
	l := Layer{
		ChainID: digest.Digest(info.Name), Parent: digest.Digest(info.Parent),
		DiffID: digest.Digest(info.Labels[labelDiffID]), Dir: info.Labels[labelUpper], Size: size,
	}
	if l.DiffID.Validate() != nil || l.Dir == "" {
		return Layer{}, fmt.Errorf("layer %s: damaged record: digest %q, directory %q", info.Name, l.DiffID, l.Dir)
	}
	return l, nil
}

func (x *layerIndex) putLocked(l Layer) {
	if _, ok := x.byChain[l.ChainID]; !ok {
		x.byDiff[l.DiffID] = append(x.byDiff[l.DiffID], l.ChainID)
	}
	x.byChain[l.ChainID] = l
}

func (x *layerIndex) put(l Layer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.putLocked(l)
}

func (x *layerIndex) chain(id digest.Digest) (Layer, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	l, ok := x.byChain[id]
	return l, ok
}

// anyWith returns a layer with this content, whatever it is stacked on.
func (x *layerIndex) anyWith(diffID digest.Digest) (Layer, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, c := range x.byDiff[diffID] {
		return x.byChain[c], true
	}
	return Layer{}, false
}

func (x *layerIndex) all() []Layer {
	x.mu.RLock()
	defer x.mu.RUnlock()
	ls := make([]Layer, 0, len(x.byChain))
	for _, l := range x.byChain {
		ls = append(ls, l)
	}
	return ls
}

// Chain returns the directories of a chain that is unpacked. The empty id is the empty chain.
func (s *Store) Chain(id digest.Digest) (Chain, error) {
	c := Chain{ChainID: id}
	for at := id; at != ""; {
		l, ok := s.layers.chain(at)
		if !ok {
			return Chain{}, fmt.Errorf("layer chain %s is not unpacked here: %w", at, errdefs.ErrNotFound)
		}
		c.Lower = append(c.Lower, l.Dir)
		c.Layers = append(c.Layers, l)
		at = l.Parent
	}
	for i, j := 0, len(c.Layers)-1; i < j; i, j = i+1, j-1 {
		c.Layers[i], c.Layers[j] = c.Layers[j], c.Layers[i]
	}
	return c, nil
}

// ChainID is the name of a stack of layers, bottom first.
func ChainID(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return ""
	}
	return identity.ChainID(append([]digest.Digest(nil), diffIDs...))
}

// LayerDraft is a layer being written. It is a plain directory, known to nobody, until
// Commit; one of Commit or Discard must be called. It is for one goroutine at a time.
type LayerDraft struct {
	Upper, Work string   // for overlay's upperdir and workdir
	Lower       []string // top-most first; never empty
	Parent      digest.Digest

	store *Store
	dir   string
}

// NewLayer starts a layer on top of the chain parent ("" for none). It costs no write to
// any database.
func (s *Store) NewLayer(_ context.Context, parent digest.Digest) (*LayerDraft, error) {
	c, err := s.Chain(parent)
	if err != nil {
		return nil, fmt.Errorf("new layer: %w", err)
	}
	if len(c.Lower) == 0 {
		// A first layer is an overlay like every other, on an empty directory:
		// one kind of mount, one way to read the result.
		c.Lower = []string{s.path("empty")}
	}
	dir, err := os.MkdirTemp(s.path("drafts"), "")
	if err != nil {
		return nil, fmt.Errorf("new layer: %w", err)
	}
	d := &LayerDraft{Upper: dir + "/fs", Work: dir + "/work", Lower: c.Lower, Parent: parent, store: s, dir: dir}
	if err := errors.Join(os.Mkdir(d.Upper, 0o755), os.Mkdir(d.Work, 0o700), likeRoot(d.Upper, c.Lower[0])); err != nil {
		d.Discard()
		return nil, fmt.Errorf("new layer: %w", err)
	}
	return d, nil
}

// likeRoot gives the root of a new layer the owner and mode of the one below.
func likeRoot(upper, lower string) error {
	st, err := os.Stat(lower)
	if err != nil || strings.HasSuffix(lower, "/empty") {
		return err
	}
	uid, gid := ownerOf(st)
	return errors.Join(os.Chown(upper, uid, gid), os.Chmod(upper, st.Mode()))
}

// Mounts mounts the draft on its parent, writable.
func (d *LayerDraft) Mounts() []mount.Mount {
	// A volatile mount leaves this mark, and no later one would be allowed: after a crash
	// of the machine the files may be incomplete. But then the draft is gone as well.
	_ = os.RemoveAll(d.Work + "/work/incompat")
	opts := append([]string{"lowerdir=" + strings.Join(d.Lower, ":"), "upperdir=" + d.Upper, "workdir=" + d.Work}, overlayOptions...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: opts}}
}

// Discard throws the draft away. After Commit it does nothing.
func (d *LayerDraft) Discard() {
	if d.dir == "" {
		return
	}
	if err := tree.Remove(d.dir); err != nil {
		d.store.log.Warn("draft of a layer stays until the next start", "dir", d.dir, "err", err)
	}
	d.dir = ""
}

// CopyLayer makes a layer on parent out of an overlay upper directory that somebody goes on
// writing to, such as a container's: its files are copied as they are now.
func (s *Store) CopyLayer(ctx context.Context, parent digest.Digest, upper string) (Layer, error) {
	d, err := s.NewLayer(ctx, parent)
	if err != nil {
		return Layer{}, err
	}
	defer d.Discard()
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := d.writeTar(ctx, pw, upper)
		pw.CloseWithError(err)
		written <- err
	}()
	u, err := s.unpack(ctx, nil, pr, nil)
	pr.CloseWithError(err) // the writer must not wait for a reader that gave up
	if err := errors.Join(err, <-written); err != nil {
		return Layer{}, fmt.Errorf("copy layer from %s: %w", upper, err)
	}
	return u.adopt(s.scope(ctx), parent)
}

// adopt turns the draft into the committed chain that diffID makes of it. headers is the
// name of the header stream in the draft's directory.
func (d *LayerDraft) adopt(ctx context.Context, diffID digest.Digest, size int64) (Layer, error) {
	s := d.store
	defer d.Discard()
	chainID := diffID
	if d.Parent != "" {
		chainID = identity.ChainID([]digest.Digest{d.Parent, diffID})
	}
	if l, ok := s.layers.chain(chainID); ok {
		if err := s.retain(ctx, chainID); !errdefs.IsNotFound(err) {
			return l, err
		}
	}
	key := "draft-" + strings.TrimPrefix(d.dir, s.path("drafts")+"/") + "-" + chainID.Encoded()[:12]
	if _, err := s.snaps.Prepare(ctx, key, d.Parent.String()); err != nil {
		return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
	}
	l, err := d.fill(ctx, key, chainID, diffID, size)
	if err == nil {
		s.layers.put(l)
		return l, nil
	}
	_ = s.snaps.Remove(ctx, key)
	if errdefs.IsAlreadyExists(err) { // somebody else unpacked the same chain meanwhile
		return s.found(ctx, chainID)
	}
	return Layer{}, fmt.Errorf("commit layer %s: %w", diffID, err)
}

// fill moves the draft's files into the prepared snapshot and commits it.
func (d *LayerDraft) fill(ctx context.Context, key string, chainID, diffID digest.Digest, size int64) (Layer, error) {
	s := d.store
	info, err := s.snaps.Stat(ctx, key)
	if err != nil {
		return Layer{}, err
	}
	dir := info.Labels[labelUpper]
	// Not os.Rename, which refuses the empty directory that is there already.
	if err := unix.Rename(d.Upper, dir); err != nil {
		return Layer{}, err
	}
	for _, name := range []string{headersFile, rawFile} {
		if err := os.Rename(d.dir+"/"+name, beside(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Layer{}, err
		}
	}
	labels := map[string]string{labelDiffID: diffID.String(), labelSize: strconv.FormatInt(size, 10)}
	if err := s.snaps.Commit(ctx, chainID.String(), key, snapshots.WithLabels(labels)); err != nil {
		return Layer{}, err
	}
	return Layer{ChainID: chainID, Parent: d.Parent, DiffID: diffID, Dir: dir, Size: size}, nil
}

// retain adds an existing chain to the lease of ctx, if there is one, and makes sure that
// the collector had not taken it before.
func (s *Store) retain(ctx context.Context, chainID digest.Digest) error {
	id, ok := leases.FromContext(ctx)
	if !ok || chainID == "" {
		return nil
	}
	err := s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: chainID.String(), Type: "snapshots/" + Snapshotter})
	if err == nil {
		_, err = s.snaps.Stat(ctx, chainID.String())
	}
	if errdefs.IsNotFound(err) {
		s.layers.drop([]digest.Digest{chainID})
	}
	if err != nil {
		return fmt.Errorf("keep layer chain %s: %w", chainID, err)
	}
	return nil
}

func (s *Store) found(ctx context.Context, chainID digest.Digest) (Layer, error) {
	info, err := s.snaps.Stat(ctx, chainID.String())
	if err != nil {
		return Layer{}, err
	}
	l, err := layerOf(info)
	if err != nil {
		return Layer{}, err
	}
	s.layers.put(l)
	return l, s.retain(ctx, chainID)
}

// Mount gives a read-only view of a chain as one directory, until unmount is called.
func (s *Store) Mount(_ context.Context, chain digest.Digest) (dir string, unmount func(), err error) {
	c, err := s.Chain(chain)
	if err != nil {
		return "", nil, err
	}
	switch len(c.Lower) {
	case 0:
		return s.path("empty"), func() {}, nil
	case 1:
		return s.view(mount.Mount{Type: "bind", Source: c.Lower[0], Options: []string{"ro", "rbind"}})
	}
	opts := append([]string{"lowerdir=" + strings.Join(c.Lower, ":"), "ro"}, overlayOptions[:3]...)
	return s.view(mount.Mount{Type: "overlay", Source: "overlay", Options: opts})
}

func (s *Store) view(m mount.Mount) (string, func(), error) {
	dir, err := os.MkdirTemp(s.path("drafts"), "view-")
	if err != nil {
		return "", nil, err
	}
	if err := m.Mount(dir); err != nil {
		_ = os.Remove(dir)
		return "", nil, fmt.Errorf("mount image: %w", err)
	}
	var once sync.Once
	return dir, func() { once.Do(func() { s.unview(dir) }) }, nil
}

func (s *Store) unview(dir string) {
	// Lazily: a reader that still holds a file open must not keep the view in the table.
	if err := mount.UnmountAll(dir, mntDetach); err != nil {
		s.log.Warn("image view stays mounted", "dir", dir, "err", err)
		return
	}
	_ = os.Remove(dir)
}
