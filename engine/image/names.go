package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

const (
	danglingPrefix = "<none>@"
	registryPrefix = "@registry/"
)

// record is one name and what it refers to.
type record = images.Image

// nameIndex mirrors all image records in memory: readers take a map that never changes,
// writers replace it after the database took the change. The zero value is empty.
type nameIndex struct {
	write sync.Mutex // held from the decision to the commit, so that names change one at a time
	mu    sync.RWMutex
	all   map[string]record
}

func (x *nameIndex) reload(ctx context.Context, s images.Store) error {
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	all := make(map[string]record, len(list))
	for _, r := range list {
		all[r.Name] = r
	}
	x.set(all)
	return nil
}

func (x *nameIndex) set(all map[string]record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all = all
}

// snapshot is the map of all records as they are now; it must not be changed.
func (x *nameIndex) snapshot() map[string]record {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.all
}

// change is a set of names to write and to remove, decided on one state of the index and
// committed in one transaction.
type change struct {
	put    []record
	remove []string
}

func (c *change) empty() bool { return len(c.put)+len(c.remove) == 0 }

// editNames decides on a change and makes it durable. Names change in no other way.
func (s *Store) editNames(ctx context.Context, decide func(now map[string]record) (change, error)) error {
	ctx = s.scope(ctx)
	s.names.write.Lock()
	defer s.names.write.Unlock()
	now := s.names.snapshot()
	c, err := decide(now)
	if err != nil || c.empty() {
		return err
	}
	next := maps.Clone(now)
	err = s.meta.Update(func(tx *bbolt.Tx) error {
		// Only image records are touched with this context: snapshot or content calls
		// inside a transaction could deadlock with the collector.
		return s.commitNames(boltutil.WithTransaction(ctx, tx), c, next)
	})
	if err != nil {
		return fmt.Errorf("write image names: %w", err)
	}
	s.names.set(next)
	return nil
}

func (s *Store) commitNames(ctx context.Context, c change, next map[string]record) error {
	for _, name := range c.remove {
		if err := s.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("%s: %w", name, err)
		}
		delete(next, name)
	}
	for _, r := range c.put {
		_, exists := next[r.Name]
		write := s.images.Create
		if exists {
			write = func(ctx context.Context, r record) (record, error) { return s.images.Update(ctx, r) }
		}
		written, err := write(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		next[r.Name] = written
	}
	return nil
}

// point adds to c that name now refers to target, and keeps an image that would lose its
// last name by that as a dangling one.
func (c *change) point(now map[string]record, name string, target ocispec.Descriptor, labels map[string]string) {
	old, ok := now[name]
	if ok && old.Target.Digest != target.Digest && !c.namedOtherwise(now, old.Target.Digest, name) {
		c.put = append(c.put, record{Name: danglingPrefix + old.Target.Digest.String(), Target: old.Target})
	}
	dangling := danglingPrefix + target.Digest.String()
	if name != dangling {
		c.put = slices.DeleteFunc(c.put, func(r record) bool { return r.Name == dangling })
		if _, ok := now[dangling]; ok {
			c.remove = append(c.remove, dangling)
		}
	}
	c.put = append(c.put, record{Name: name, Target: target, Labels: labels})
}

// namedOtherwise tells whether an image has another name than except when c is made.
func (c *change) namedOtherwise(now map[string]record, id digest.Digest, except string) bool {
	names := func(r record) bool { return r.Target.Digest == id && r.Name != except && isTagOrDigest(r.Name) }
	for name, r := range now {
		if names(r) && !c.changes(name) {
			return true
		}
	}
	return slices.ContainsFunc(c.put, names)
}

func (c *change) changes(name string) bool {
	return slices.Contains(c.remove, name) || slices.ContainsFunc(c.put, func(r record) bool { return r.Name == name })
}

func isDangling(name string) bool { return strings.HasPrefix(name, danglingPrefix) }
func isRegistry(name string) bool { return strings.HasPrefix(name, registryPrefix) }

// isTagOrDigest reports whether a record is a name that users see.
func isTagOrDigest(name string) bool { return !isDangling(name) && !isRegistry(name) }

// parseTag reads a reference as the name of a tag: "web" is docker.io/library/web:latest.
func parseTag(ref string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("invalid reference format: %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, fmt.Errorf("refusing to create a tag with a digest reference: %q: %w", ref, errdefs.ErrInvalidArgument)
	}
	return reference.TagNameOnly(named).(reference.NamedTagged), nil
}

// splitRepo cuts a record's name into its repository and what follows it.
func splitRepo(name string) (repo, tag string, dgst digest.Digest) {
	if at := strings.IndexByte(name, '@'); at >= 0 {
		return name[:at], "", digest.Digest(name[at+1:])
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		return name[:colon], name[colon+1:], ""
	}
	return name, "", ""
}

// familiar is a name as users write it.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}

func noSuchImage(ref string) error {
	shown := ref
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && !looksLikeID(ref) {
		shown = reference.FamiliarString(reference.TagNameOnly(named))
	}
	return errdefs.ErrNotFound.WithMessage("No such image: " + shown)
}

func looksLikeID(ref string) bool {
	ref = strings.TrimPrefix(ref, "sha256:")
	if len(ref) < 4 || len(ref) > 64 {
		return false
	}
	return strings.Trim(ref, "0123456789abcdef") == ""
}

// resolve finds the record's target that a reference means: name, name:tag, name@digest,
// digest, id or the start of an id.
func (s *Store) resolve(ref string) (ocispec.Descriptor, error) {
	now := s.names.snapshot()
	if d, ok, err := resolveName(now, ref); ok || err != nil {
		return d, err
	}
	if !looksLikeID(ref) {
		return ocispec.Descriptor{}, noSuchImage(ref)
	}
	return resolvePrefix(now, ref)
}

func resolveName(now map[string]record, ref string) (ocispec.Descriptor, bool, error) {
	if d := digest.Digest(ref); d.Validate() == nil {
		t, ok := byDigest(now, d)
		return t, ok, nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		if looksLikeID(ref) { // 64 hex digits are no valid name
			return ocispec.Descriptor{}, false, nil
		}
		return ocispec.Descriptor{}, false, fmt.Errorf("invalid reference format: %q: %w", ref, errdefs.ErrInvalidArgument)
	}
	if d, ok := named.(reference.Digested); ok {
		t, ok := byDigest(now, d.Digest())
		return t, ok, nil
	}
	r, ok := now[reference.TagNameOnly(named).String()]
	return r.Target, ok, nil
}

// byDigest finds an image by its id, or by the digest that some registry knows it by.
func byDigest(now map[string]record, d digest.Digest) (ocispec.Descriptor, bool) {
	var found ocispec.Descriptor
	for name, r := range now {
		if isRegistry(name) {
			continue
		}
		if r.Target.Digest == d {
			return r.Target, true
		}
		if _, _, remote := splitRepo(name); remote == d && !isDangling(name) {
			found = r.Target
		}
	}
	return found, found.Digest != ""
}

func resolvePrefix(now map[string]record, ref string) (ocispec.Descriptor, error) {
	prefix := "sha256:" + strings.TrimPrefix(ref, "sha256:")
	found := map[digest.Digest]ocispec.Descriptor{}
	for name, r := range now {
		if !isRegistry(name) && strings.HasPrefix(r.Target.Digest.String(), prefix) {
			found[r.Target.Digest] = r.Target
		}
	}
	if len(found) > 1 {
		return ocispec.Descriptor{}, fmt.Errorf("ambiguous reference %q: it is the start of %d image ids: %w", ref, len(found), errdefs.ErrInvalidArgument)
	}
	for _, t := range found {
		return t, nil
	}
	return ocispec.Descriptor{}, noSuchImage(ref)
}

// namesOf lists the records of one image, sorted.
func namesOf(now map[string]record, id digest.Digest) []string {
	var names []string
	for name, r := range now {
		if r.Target.Digest == id && !isRegistry(name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}
