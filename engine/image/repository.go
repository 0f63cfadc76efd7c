package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labelRepository on a lease says which repository's uploads it holds.
const labelRepository = "slipway.dev/registry.repository"

// Repositories is what the built-in registry serves out of the store. Content is shared by
// everybody, so presence says nothing: a blob or manifest is visible in a repository only
// when it was put there, by an upload, a mount, a manifest that lists it or a push of ours.
type Repositories struct {
	store *Store

	// edit is held while names on disk and members in memory change together, so that a manifest that is put
	// and deleted at the same moment ends up the same in both. It is taken before all other locks.
	edit sync.Mutex

	mu      sync.Mutex
	ready   bool // members are read from disk at the first use
	members map[string]*members
	uploads map[string]*Upload
}

// members is what belongs to one repository.
type members struct {
	manifests map[digest.Digest]manifestMember
	tags      map[string]digest.Digest
	blobs     map[digest.Digest]int       // how many manifests list it
	uploaded  map[digest.Digest]time.Time // until when it belongs here without a manifest
}

type manifestMember struct {
	desc    ocispec.Descriptor
	blobs   []digest.Digest
	subject digest.Digest
}

func newMembers() *members {
	return &members{
		manifests: map[digest.Digest]manifestMember{}, tags: map[string]digest.Digest{},
		blobs: map[digest.Digest]int{}, uploaded: map[digest.Digest]time.Time{},
	}
}

// Repositories returns what the built-in registry serves.
func (s *Store) Repositories() *Repositories { return s.repos }

// anyManifest is the union of the fields that matter in manifests and indexes.
type anyManifest struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       ocispec.Descriptor   `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

func (m anyManifest) blobs() []digest.Digest {
	var ds []digest.Digest
	if m.Config.Digest != "" {
		ds = append(ds, m.Config.Digest)
	}
	for _, l := range m.Layers {
		ds = append(ds, l.Digest)
	}
	return ds
}

func (m anyManifest) member(d ocispec.Descriptor) manifestMember {
	x := manifestMember{desc: d, blobs: m.blobs()}
	if m.Subject != nil {
		x.subject = m.Subject.Digest
	}
	x.desc.ArtifactType = m.ArtifactType
	if x.desc.ArtifactType == "" && m.Config.MediaType != "" {
		x.desc.ArtifactType = m.Config.MediaType
	}
	x.desc.Annotations = m.Annotations
	return x
}

func (m *members) put(x manifestMember) {
	if _, ok := m.manifests[x.desc.Digest]; ok {
		return
	}
	m.manifests[x.desc.Digest] = x
	for _, b := range x.blobs {
		m.blobs[b]++
	}
}

func (m *members) drop(d digest.Digest) {
	for _, b := range m.manifests[d].blobs {
		if m.blobs[b]--; m.blobs[b] == 0 {
			delete(m.blobs, b)
		}
	}
	delete(m.manifests, d)
}

func (m *members) hasBlob(d digest.Digest) bool {
	until, ok := m.uploaded[d]
	return m.blobs[d] > 0 || ok && time.Now().Before(until)
}

// openLocked reads the members of all repositories: names from memory, what manifests
// list from the content store, fresh uploads from their leases.
func (r *Repositories) openLocked(ctx context.Context) error {
	if r.ready {
		return nil
	}
	for name, rec := range r.store.names.snapshot() {
		if !isRegistry(name) {
			continue
		}
		repo, tag, d := splitRepo(strings.TrimPrefix(name, registryPrefix))
		m := r.ofLocked(repo)
		if tag != "" {
			m.tags[tag] = rec.Target.Digest
			continue
		}
		raw, err := r.store.readDocument(ctx, rec.Target)
		if err != nil {
			r.store.log.Error("registry manifest is damaged: push it again, or delete it", "repository", repo, "manifest", d, "err", err)
			continue
		}
		var doc anyManifest
		if err := json.Unmarshal(raw, &doc); err != nil {
			return fmt.Errorf("repository %s: manifest %s: %w", repo, d, err)
		}
		m.put(doc.member(rec.Target))
	}
	r.ready = true
	return r.readLeasesLocked(ctx)
}

func (r *Repositories) readLeasesLocked(ctx context.Context) error {
	list, err := r.store.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range list {
		repo := l.Labels[labelRepository]
		if repo == "" {
			continue
		}
		held, err := r.store.leases.ListResources(ctx, l)
		if err != nil {
			return err
		}
		for _, res := range held {
			if res.Type == "content" {
				r.ofLocked(repo).uploaded[digest.Digest(res.ID)] = l.CreatedAt.Add(leaseTime)
			}
		}
	}
	return nil
}

func (r *Repositories) ofLocked(repo string) *members {
	m, ok := r.members[repo]
	if !ok {
		m = newMembers()
		r.members[repo] = m
	}
	return m
}

// in runs fn on the members of a repository; create makes it when it is new.
func (r *Repositories) in(ctx context.Context, repo string, create bool, fn func(*members) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.openLocked(r.store.scope(ctx)); err != nil {
		return err
	}
	m, ok := r.members[repo]
	if !ok && !create {
		return fmt.Errorf("repository %s: %w", repo, errdefs.ErrNotFound)
	}
	if !ok {
		m = newMembers()
	}
	err := fn(m)
	if err == nil && (len(m.manifests) > 0 || len(m.uploaded) > 0) {
		r.members[repo] = m
	}
	if len(m.manifests) == 0 && len(m.uploaded) == 0 {
		delete(r.members, repo)
	}
	return err
}

// List names all repositories that have a manifest, sorted.
func (r *Repositories) List(ctx context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.openLocked(r.store.scope(ctx)); err != nil {
		return nil, err
	}
	var names []string
	for name, m := range r.members {
		if len(m.manifests) > 0 {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// Tags lists a repository's tags, sorted.
func (r *Repositories) Tags(ctx context.Context, repo string) (tags []string, err error) {
	err = r.in(ctx, repo, false, func(m *members) error {
		if len(m.manifests) == 0 {
			return fmt.Errorf("repository %s: %w", repo, errdefs.ErrNotFound)
		}
		tags = slices.Sorted(maps.Keys(m.tags))
		return nil
	})
	return tags, err
}

// Manifest returns a manifest by tag or digest, as it was put.
func (r *Repositories) Manifest(ctx context.Context, repo, ref string) (d ocispec.Descriptor, raw []byte, err error) {
	err = r.in(ctx, repo, false, func(m *members) error {
		at := digest.Digest(ref)
		if at.Validate() != nil {
			at = m.tags[ref]
		}
		x, ok := m.manifests[at]
		if !ok {
			return fmt.Errorf("manifest %s of repository %s: %w", ref, repo, errdefs.ErrNotFound)
		}
		d = x.desc
		return nil
	})
	if err != nil {
		return d, nil, err
	}
	raw, err = r.store.readDocument(r.store.scope(ctx), d)
	return d, raw, err
}

// Referrers lists the manifests of a repository whose subject is d.
func (r *Repositories) Referrers(ctx context.Context, repo string, d digest.Digest) (found []ocispec.Descriptor, err error) {
	err = r.in(ctx, repo, true, func(m *members) error {
		for _, x := range m.manifests {
			if x.subject == d {
				found = append(found, x.desc)
			}
		}
		return nil
	})
	slices.SortFunc(found, func(a, b ocispec.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return found, err
}

// PutManifest stores a manifest under a tag or its own digest, and under more tags. Everything it lists must
// be in the repository already; a subject and the manifests of an index need not. host is
// how clients call this registry: a tagged image is also named host/repo:tag on this machine.
func (r *Repositories) PutManifest(ctx context.Context, host, repo, ref string, tags []string, mediaType string, raw []byte) (ocispec.Descriptor, error) {
	s := r.store
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer done()
	var doc anyManifest
	if err := json.Unmarshal(raw, &doc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest is not JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return ocispec.Descriptor{}, fmt.Errorf("manifest says it is a %q, its Content-Type %q: %w", doc.MediaType, mediaType, errdefs.ErrInvalidArgument)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if given := digest.Digest(ref); given.Validate() == nil && KnownAlgorithm(given) {
		if d.Digest = given.Algorithm().FromBytes(raw); given != d.Digest {
			return d, mismatch("manifest", given, d.Digest)
		}
	} else {
		tags = append([]string{ref}, tags...)
	}
	r.edit.Lock()
	defer r.edit.Unlock()
	if err := r.vet(ctx, repo, doc); err != nil {
		return d, err
	}
	if err := s.writeBlobAs(ctx, d, raw, childLabels(doc)); err != nil {
		return d, err
	}
	return d, r.publishLocked(ctx, host, repo, tags, d, doc)
}

// vet checks that a manifest lists nothing that is not in the repository.
func (r *Repositories) vet(ctx context.Context, repo string, doc anyManifest) error {
	for _, d := range append(doc.blobs(), digestsOf(doc.Manifests)...) {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("manifest lists digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
		}
	}
	optional := map[digest.Digest]bool{}
	for _, l := range doc.Layers {
		//nolint:staticcheck // deprecated, and therefore still to be found
		if len(l.URLs) > 0 || images.IsNonDistributable(l.MediaType) {
			optional[l.Digest] = true
		}
	}
	return r.in(ctx, repo, true, func(m *members) error {
		for _, b := range doc.blobs() {
			if !m.hasBlob(b) && !optional[b] {
				return &MissingBlobError{Digest: b}
			}
		}
		return nil
	})
}

// MissingBlobError says that a manifest lists a blob that is not in its repository.
type MissingBlobError struct{ Digest digest.Digest }

func (e *MissingBlobError) Error() string {
	return fmt.Sprintf("manifest lists blob %s, which is not in the repository: push it first", e.Digest)
}

// Unwrap makes it an invalid argument.
func (e *MissingBlobError) Unwrap() error { return errdefs.ErrInvalidArgument }

func digestsOf(list []ocispec.Descriptor) []digest.Digest {
	ds := make([]digest.Digest, len(list))
	for i, d := range list {
		ds[i] = d.Digest
	}
	return ds
}

// childLabels lead the collector from a manifest to what it lists.
func childLabels(doc anyManifest) map[string]string {
	labels := map[string]string{}
	for i, d := range append(doc.blobs(), digestsOf(doc.Manifests)...) {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", i)] = d.String()
	}
	return labels
}

// publish makes an image that is stored a member of a repository.
func (r *Repositories) publish(ctx context.Context, host, repo, tag string, d ocispec.Descriptor, doc anyManifest) error {
	r.edit.Lock()
	defer r.edit.Unlock()
	return r.publishLocked(ctx, host, repo, []string{tag}, d, doc)
}

// publishLocked writes the names of a manifest that is stored, all in one transaction, and
// then makes it visible.
func (r *Repositories) publishLocked(ctx context.Context, host, repo string, tags []string, d ocispec.Descriptor, doc anyManifest) error {
	target, runnable := r.imageIn(ctx, d, doc, 0)
	err := r.store.editNames(ctx, func(now map[string]record) (c change, _ error) {
		c.put = append(c.put, record{Name: registryPrefix + repo + "@" + d.Digest.String(), Target: d})
		for _, tag := range tags {
			c.put = append(c.put, record{Name: registryPrefix + repo + ":" + tag, Target: d})
		}
		if !runnable || host == "" || len(tags) == 0 {
			return c, nil
		}
		for _, tag := range tags {
			c.point(now, host+"/"+repo+":"+tag, target, nil)
		}
		c.point(now, host+"/"+repo+"@"+d.Digest.String(), target, nil)
		return c, nil
	})
	if err != nil {
		return err
	}
	return r.in(ctx, repo, true, func(m *members) error {
		m.put(doc.member(d))
		for _, tag := range tags {
			m.tags[tag] = d.Digest
		}
		return nil
	})
}

// imageIn finds the manifest of this machine's platform behind d. Images are known by sha256.
func (r *Repositories) imageIn(ctx context.Context, d ocispec.Descriptor, doc anyManifest, depth int) (ocispec.Descriptor, bool) {
	s := r.store
	bare := ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	if isManifestType(d.MediaType) {
		return bare, images.IsConfigType(doc.Config.MediaType) && d.Digest.Algorithm() == digest.SHA256
	}
	if depth > 4 {
		return bare, false
	}
	best, ok := bestManifest(doc.Manifests, hostPlatform(), func(m ocispec.Descriptor) bool {
		_, err := s.content.Info(ctx, m.Digest)
		return err == nil
	})
	if !ok {
		return bare, false
	}
	raw, err := s.readDocument(ctx, best)
	if err != nil {
		return bare, false
	}
	var child anyManifest
	if err := json.Unmarshal(raw, &child); err != nil {
		return bare, false
	}
	return r.imageIn(ctx, best, child, depth+1)
}

// DeleteManifest takes a tag away, or a manifest with all its tags.
func (r *Repositories) DeleteManifest(ctx context.Context, repo, ref string) error {
	r.edit.Lock()
	defer r.edit.Unlock()
	var remove []string
	d := digest.Digest(ref)
	byDigest := d.Validate() == nil
	err := r.in(ctx, repo, false, func(m *members) error {
		if !byDigest {
			if _, ok := m.tags[ref]; !ok {
				return fmt.Errorf("tag %s of repository %s: %w", ref, repo, errdefs.ErrNotFound)
			}
			remove = append(remove, registryPrefix+repo+":"+ref)
			return nil
		}
		if _, ok := m.manifests[d]; !ok {
			return fmt.Errorf("manifest %s of repository %s: %w", ref, repo, errdefs.ErrNotFound)
		}
		remove = append(remove, registryPrefix+repo+"@"+ref)
		for tag, at := range m.tags {
			if at == d {
				remove = append(remove, registryPrefix+repo+":"+tag)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = r.store.editNames(ctx, func(map[string]record) (change, error) { return change{remove: remove}, nil })
	if err != nil {
		return err
	}
	return r.in(ctx, repo, false, func(m *members) error {
		for _, name := range remove {
			_, tag, _ := splitRepo(strings.TrimPrefix(name, registryPrefix))
			delete(m.tags, tag)
		}
		if byDigest {
			m.drop(d)
		}
		return nil
	})
}

// addUploaded makes a blob that a lease holds a member of a repository for as long as the lease lasts.
func (m *members) addUploaded(d digest.Digest, l leases.Lease) {
	now := time.Now()
	maps.DeleteFunc(m.uploaded, func(_ digest.Digest, until time.Time) bool { return now.After(until) })
	m.uploaded[d] = l.CreatedAt.Add(leaseTime)
}

// unlease takes a blob out of the leases of a repository's uploads, or it would be back after a restart.
func (r *Repositories) unlease(ctx context.Context, repo string, d digest.Digest) error {
	list, err := r.store.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range list {
		if l.Labels[labelRepository] != repo {
			continue
		}
		err := r.store.leases.DeleteResource(ctx, l, leases.Resource{ID: d.String(), Type: "content"})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// lease makes an expiring lease that holds uploads of one repository.
func (r *Repositories) lease(ctx context.Context, repo string) (leases.Lease, error) {
	return r.store.leases.Create(r.store.scope(ctx), leases.WithRandomID(), leases.WithExpiration(leaseTime), leases.WithLabel(labelRepository, repo))
}
