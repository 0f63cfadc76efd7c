package image

import (
	"context"
	"crypto/rand"
	_ "crypto/sha512" // or its digests would not be valid
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxUploads bounds the uploads under way; uploadIdle is when one is given up for it.
const (
	maxUploads = 512
	uploadIdle = time.Hour
)

// KnownAlgorithm tells whether content can be kept under a digest. Layers of images that run here
// are found by sha256; anything else in the registry may also go by sha512.
func KnownAlgorithm(d digest.Digest) bool {
	return d.Algorithm() == digest.SHA256 || d.Algorithm() == digest.SHA512
}

func hostPlatform() platforms.MatchComparer { return platforms.Default() }

// Upload is one blob on its way into a repository.
type Upload struct {
	ID string

	repos *Repositories
	repo  string
	lease leases.Lease

	mu     sync.Mutex // one request at a time
	w      content.Writer
	offset int64
	used   time.Time
	ended  bool
}

// NewUpload starts an upload.
func (r *Repositories) NewUpload(ctx context.Context, repo string) (*Upload, error) {
	r.dropIdle(ctx)
	r.mu.Lock()
	full := len(r.uploads) >= maxUploads
	r.mu.Unlock()
	if full {
		return nil, fmt.Errorf("%d uploads are under way: try again later: %w", maxUploads, errdefs.ErrResourceExhausted)
	}
	l, err := r.lease(ctx, repo)
	if err != nil {
		return nil, err
	}
	// The id is as secret as the upload is private: it is all that a client shows to go on.
	u := &Upload{ID: rand.Text(), repos: r, repo: repo, lease: l, used: time.Now()}
	u.w, err = content.OpenWriter(u.ctx(ctx), r.store.content, content.WithRef("upload-"+u.ID))
	if err != nil {
		r.store.endLease(r.store.scope(ctx), l)
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uploads[u.ID] = u
	return u, nil
}

// Upload finds an upload of a repository. Uploads end with the daemon: clients start again.
func (r *Repositories) Upload(repo, id string) (*Upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, ok := r.uploads[id]
	if !ok || u.repo != repo {
		return nil, fmt.Errorf("upload %s: %w", id, errdefs.ErrNotFound)
	}
	return u, nil
}

func (r *Repositories) dropIdle(ctx context.Context) {
	r.mu.Lock()
	var idle []*Upload
	for _, u := range r.uploads {
		if u.mu.TryLock() {
			if time.Since(u.used) > uploadIdle {
				idle = append(idle, u)
			}
			u.mu.Unlock()
		}
	}
	r.mu.Unlock()
	for _, u := range idle {
		u.Cancel(ctx)
	}
}

// closeUploads ends all uploads; what they wrote is garbage when their leases expire.
func (r *Repositories) closeUploads() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.uploads {
		closeQuietly(u.w)
	}
	clear(r.uploads)
}

func (u *Upload) ctx(ctx context.Context) context.Context {
	return leases.WithLease(u.repos.store.scope(ctx), u.lease.ID)
}

// Offset is how much has arrived.
func (u *Upload) Offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.offset
}

// Append adds what r holds. start is where the client says that it belongs; negative is
// wherever the upload is. A chunk that is out of order is errdefs.ErrOutOfRange.
func (u *Upload) Append(_ context.Context, r io.Reader, start int64) (int64, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return u.offset, fmt.Errorf("upload %s: %w", u.ID, errdefs.ErrNotFound)
	}
	if start >= 0 && start != u.offset {
		return u.offset, fmt.Errorf("chunk starts at %d, the upload is at %d: %w", start, u.offset, errdefs.ErrOutOfRange)
	}
	s := u.repos.store
	in := &guardedReader{r: r, n: u.offset, checked: u.offset, limit: s.limits.LayerBytes, dir: s.root, reserve: s.limits.ReserveMB << 20}
	n, err := io.Copy(u.w, in)
	u.offset += n
	u.used = time.Now()
	return u.offset, err
}

// Commit ends the upload with a blob, which must have this digest.
func (u *Upload) Commit(ctx context.Context, d digest.Digest) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return fmt.Errorf("upload %s: %w", u.ID, errdefs.ErrNotFound)
	}
	if !KnownAlgorithm(d) {
		return fmt.Errorf("digest %s: blobs are kept by sha256 or sha512 here: %w", d, errdefs.ErrNotImplemented)
	}
	got := u.w.Digest()
	if got != d && d.Algorithm() == got.Algorithm() {
		u.endLocked(ctx, true)
		return mismatch("blob", d, got)
	}
	ctx = u.ctx(context.WithoutCancel(ctx))
	err := u.w.Commit(ctx, u.offset, d) // by another algorithm than the writer's it reads all of it again
	if errdefs.IsFailedPrecondition(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if errdefs.IsAlreadyExists(err) { // somebody's upload was faster; ours is held as well
		err = u.repos.store.leases.AddResource(ctx, u.lease, leases.Resource{ID: d.String(), Type: "content"})
	}
	u.endLocked(ctx, err != nil)
	if err != nil {
		return fmt.Errorf("store blob %s: %w", d, err)
	}
	return u.repos.in(ctx, u.repo, true, func(m *members) error {
		m.addUploaded(d, u.lease)
		return nil
	})
}

// Cancel throws the upload away.
func (u *Upload) Cancel(ctx context.Context) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.endLocked(ctx, true)
}

func (u *Upload) endLocked(ctx context.Context, abort bool) {
	if u.ended {
		return
	}
	u.ended = true
	closeQuietly(u.w)
	ctx = u.repos.store.scope(context.WithoutCancel(ctx))
	if abort {
		_ = u.repos.store.content.Abort(ctx, "upload-"+u.ID)
		u.repos.store.endLease(ctx, u.lease)
	}
	u.repos.mu.Lock()
	defer u.repos.mu.Unlock()
	delete(u.repos.uploads, u.ID)
}

// Mount makes a blob of one repository a member of another. An empty from is any
// repository: the client must know the digest either way, but only a repository that it
// names can have it.
func (r *Repositories) Mount(ctx context.Context, repo, from string, d digest.Digest) error {
	err := r.in(ctx, from, false, func(m *members) error {
		if !m.hasBlob(d) {
			return fmt.Errorf("blob %s of repository %s: %w", d, from, errdefs.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return err
	}
	l, err := r.lease(ctx, repo)
	if err != nil {
		return err
	}
	ctx = leases.WithLease(r.store.scope(ctx), l.ID)
	if _, err := r.store.materialise(ctx, d); err != nil {
		r.store.endLease(ctx, l)
		return err
	}
	return r.in(ctx, repo, true, func(m *members) error {
		m.addUploaded(d, l)
		return nil
	})
}

// materialise makes sure that a blob is in the content store, under the lease of ctx:
// layers of ours exist as directories until somebody needs the very bytes.
func (s *Store) materialise(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{Digest: d}
	if info, err := s.content.Info(ctx, d); err == nil {
		desc.Size = info.Size
		id, _ := leases.FromContext(ctx)
		return desc, s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: d.String(), Type: "content"})
	}
	r, size, err := s.OpenLayer(ctx, d)
	if err != nil {
		return desc, err
	}
	defer r.Close()
	desc.Size = size
	return desc, content.WriteBlob(ctx, s.content, "materialise-"+d.String(), r, desc)
}

// Blob is a blob of a repository.
type Blob struct {
	Digest digest.Digest
	Size   int64
	store  *Store
}

// Blob finds a blob of a repository.
func (r *Repositories) Blob(ctx context.Context, repo string, d digest.Digest) (Blob, error) {
	b := Blob{Digest: d, store: r.store}
	err := r.in(ctx, repo, false, func(m *members) error {
		if _, manifest := m.manifests[d]; !m.hasBlob(d) && !manifest {
			return fmt.Errorf("blob %s of repository %s: %w", d, repo, errdefs.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return b, err
	}
	info, err := r.store.content.Info(r.store.scope(ctx), d)
	if err == nil {
		b.Size = info.Size
		return b, nil
	}
	l, ok := r.store.layers.anyWith(d)
	if !ok {
		return b, fmt.Errorf("blob %s of repository %s is gone: push it again: %w", d, repo, errdefs.ErrNotFound)
	}
	b.Size = l.Size
	return b, nil
}

// Open reads the blob from offset on. A layer of ours that is asked for in part is first
// made again as a whole, and kept for a while: the other parts will follow.
func (b Blob) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	s := b.store
	ctx = s.scope(ctx)
	r, err := s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: b.Digest, Size: b.Size})
	if err != nil && offset == 0 {
		in, _, err := s.OpenLayer(ctx, b.Digest)
		return in, err
	}
	if err != nil {
		if r, err = b.again(ctx); err != nil {
			return nil, err
		}
	}
	return bothClosers{io.NopCloser(io.NewSectionReader(r, offset, b.Size-offset)), r}, nil
}

// partsKept is how long a layer that was asked for in parts stays as a file.
const partsKept = 10 * time.Minute

func (b Blob) again(ctx context.Context) (content.ReaderAt, error) {
	l, err := b.store.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(partsKept))
	if err != nil {
		return nil, err
	}
	d, err := b.store.materialise(leases.WithLease(ctx, l.ID), b.Digest)
	if err != nil {
		b.store.endLease(ctx, l)
		return nil, err
	}
	return b.store.content.ReaderAt(ctx, d)
}

// ErrInUse is returned for a blob that manifests list.
var ErrInUse = errors.New("blob is listed by a manifest: delete that first")

// DeleteBlob takes a blob that no manifest lists out of a repository.
func (r *Repositories) DeleteBlob(ctx context.Context, repo string, d digest.Digest) error {
	r.edit.Lock()
	defer r.edit.Unlock()
	err := r.in(ctx, repo, false, func(m *members) error {
		if m.blobs[d] > 0 {
			return fmt.Errorf("%s: %w", d, ErrInUse)
		}
		if !m.hasBlob(d) {
			return fmt.Errorf("blob %s of repository %s: %w", d, repo, errdefs.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.unlease(r.store.scope(ctx), repo, d); err != nil {
		return fmt.Errorf("delete blob %s of repository %s: %w", d, repo, err)
	}
	return r.in(ctx, repo, false, func(m *members) error {
		delete(m.uploaded, d)
		return nil
	})
}
