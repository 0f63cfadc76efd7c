package image

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// labelOwner on a record says who brought the image: absent means docker. Pruning on
// behalf of one owner leaves the images of the others alone.
const labelOwner = "slipway.dev/owner"

// User is a container that an image cannot be removed under.
type User struct {
	Container string // full id
	Image     digest.Digest
	Running   bool
}

// SetUsers tells the store who uses images. It is called once, when the daemon is put
// together: the room that knows containers is opened after this one.
func (s *Store) SetUsers(list func() []User) { s.users.Store(&list) }

// inUse lists who uses images now. It is asked for before any lock is taken: whoever
// answers has locks of its own.
func (s *Store) inUse() []User {
	if list := s.users.Load(); list != nil {
		return (*list)()
	}
	return nil
}

func usersOf(users []User, id digest.Digest) (running, stopped string) {
	for _, u := range users {
		if u.Image != id {
			continue
		}
		if u.Running {
			running = u.Container
		} else {
			stopped = u.Container
		}
	}
	return running, stopped
}

// Deleted is one line of what Remove did; one of its fields is set.
type Deleted struct {
	Untagged string `json:",omitempty"`
	Deleted  string `json:",omitempty"`
}

// RemoveOptions say how insistent a removal is.
type RemoveOptions struct {
	Force bool
}

// Tag gives the image source one more name.
func (s *Store) Tag(ctx context.Context, source, target string) error {
	tag, err := parseTag(target)
	if err != nil {
		return err
	}
	var image ocispec.Descriptor
	err = s.editNamed(ctx, source, func(now map[string]record, t ocispec.Descriptor) (c change, _ error) {
		image = t
		if old, ok := now[tag.String()]; !ok || old.Target.Digest != t.Digest {
			c.point(now, tag.String(), t, nil)
		}
		return c, nil
	})
	if err == nil {
		s.announce(ctx, "tag", image, reference.FamiliarString(tag))
	}
	return err
}

// editNamed is editNames for a change that starts from what a reference means.
func (s *Store) editNamed(ctx context.Context, ref string, decide func(map[string]record, ocispec.Descriptor) (change, error)) error {
	return s.editNames(ctx, func(now map[string]record) (change, error) {
		target, err := s.resolve(ref)
		if err != nil {
			return change{}, err
		}
		return decide(now, target)
	})
}

// Remove takes a name from an image, and removes the image with its last name; or, given
// an id, all names and the image. It refuses, as Docker does and in its words, where a
// container would lose its image. Disk space comes back when the store is idle, or on GC.
func (s *Store) Remove(ctx context.Context, ref string, o RemoveOptions) ([]Deleted, error) {
	return s.remove(ctx, ref, o, s.inUse())
}

func (s *Store) remove(ctx context.Context, ref string, o RemoveOptions, users []User) ([]Deleted, error) {
	var out []Deleted
	var image ocispec.Descriptor
	err := s.editNamed(ctx, ref, func(now map[string]record, target ocispec.Descriptor) (c change, err error) {
		image = target
		r := removal{ref: ref, id: target.Digest, force: o.Force}
		r.running, r.stopped = usersOf(users, target.Digest)
		r.names(now)
		if name, byName := recordMeant(now, ref); byName {
			out, c, err = r.byName(now, name, target)
		} else {
			out, c, err = r.byID()
		}
		return c, err
	})
	if err != nil {
		return nil, err
	}
	for _, d := range out {
		if d.Untagged != "" {
			s.announce(ctx, "untag", image, d.Untagged)
		} else {
			s.announce(ctx, "delete", image, "")
		}
	}
	return out, nil
}

// recordMeant returns the record that ref names, if it names one.
func recordMeant(now map[string]record, ref string) (string, bool) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", false
	}
	name := reference.TagNameOnly(named).String()
	_, ok := now[name]
	return name, ok
}

// removal decides, without touching anything, what removing an image means.
type removal struct {
	ref              string
	id               digest.Digest
	force            bool
	running, stopped string // containers that use the image
	tags, digests    []string
	dangling         bool
}

func (r *removal) names(now map[string]record) {
	for _, name := range namesOf(now, r.id) {
		_, tag, _ := splitRepo(name)
		switch {
		case isDangling(name):
			r.dangling = true
		case tag != "":
			r.tags = append(r.tags, name)
		default:
			r.digests = append(r.digests, name)
		}
	}
}

func (r *removal) byName(now map[string]record, name string, target ocispec.Descriptor) ([]Deleted, change, error) {
	last := len(r.tags) == 1 && r.tags[0] == name || len(r.tags) == 0 && len(r.digests) == 1
	if !last {
		return r.untag(name)
	}
	user := r.running
	if user == "" {
		user = r.stopped
	}
	if user != "" && !r.force {
		return nil, change{}, conflict("unable to remove repository reference %q (must force) - container %s is using its referenced image %s", r.ref, short(user), shortDigest(r.id))
	}
	out, c := r.all()
	if r.running == "" {
		return out, c, nil
	}
	// Forced, with a container running: the image stays, without a name.
	c.put = append(c.put, record{Name: danglingPrefix + r.id.String(), Target: target})
	return out[:len(out)-1], c, nil
}

// untag takes one of several names away, and with a repository's last tag what that
// registry calls the image.
func (r *removal) untag(name string) ([]Deleted, change, error) {
	out := []Deleted{{Untagged: familiar(name)}}
	c := change{remove: []string{name}}
	repo, tag, _ := splitRepo(name)
	if tag == "" || r.sameRepo(repo) > 1 {
		return out, c, nil
	}
	for _, d := range r.digests {
		if other, _, _ := splitRepo(d); other == repo {
			out = append(out, Deleted{Untagged: familiar(d)})
			c.remove = append(c.remove, d)
		}
	}
	return out, c, nil
}

func (r *removal) sameRepo(repo string) (n int) {
	for _, t := range r.tags {
		if other, _, _ := splitRepo(t); other == repo {
			n++
		}
	}
	return n
}

func (r *removal) byID() ([]Deleted, change, error) {
	id := shortDigest(r.id)
	switch {
	case r.running != "":
		return nil, change{}, conflict("unable to delete %s (cannot be forced) - image is being used by running container %s", id, short(r.running))
	case r.stopped != "" && !r.force:
		return nil, change{}, conflict("unable to delete %s (must be forced) - image is being used by stopped container %s", id, short(r.stopped))
	case (r.repos() > 1 || len(r.tags) > 1) && !r.force:
		return nil, change{}, conflict("unable to delete %s (must be forced) - image is referenced in multiple repositories", id)
	}
	out, c := r.all()
	return out, c, nil
}

func (r *removal) repos() int {
	repos := map[string]bool{}
	for _, name := range append(append([]string{}, r.tags...), r.digests...) {
		repo, _, _ := splitRepo(name)
		repos[repo] = true
	}
	return len(repos)
}

// all removes every name and so the image.
func (r *removal) all() ([]Deleted, change) {
	var out []Deleted
	var c change
	for _, name := range append(append([]string{}, r.tags...), r.digests...) {
		out = append(out, Deleted{Untagged: familiar(name)})
		c.remove = append(c.remove, name)
	}
	if r.dangling {
		c.remove = append(c.remove, danglingPrefix+r.id.String())
	}
	return append(out, Deleted{Deleted: r.id.String()}), c
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage("conflict: " + fmt.Sprintf(format, args...))
}

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

func shortDigest(d digest.Digest) string { return short(strings.TrimPrefix(d.String(), "sha256:")) }

// PruneOptions choose what Prune removes: images without a name, or with All every image
// that no container uses.
type PruneOptions struct {
	All   bool
	Until time.Time        // only images made before; zero: no limit
	Keep  func(Image) bool // images for which it is true stay; nil: none
	Owner string           // only images of this owner; empty is docker
}

// Prune removes images that nobody uses and returns the bytes that this frees.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Deleted, int64, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	before, err := s.Usage(ctx)
	if err != nil {
		return nil, 0, err
	}
	var out []Deleted
	users := s.inUse()
	for _, img := range list {
		if !prunable(img, o, users) {
			continue
		}
		d, err := s.remove(ctx, img.ID.String(), RemoveOptions{Force: true}, users)
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			return out, 0, err
		}
		out = append(out, d...)
	}
	after, err := s.Usage(ctx)
	return out, max(0, before.Images-after.Images), err
}

func prunable(img Image, o PruneOptions, users []User) bool {
	if img.Owner != o.Owner || (len(img.Names)+len(img.RepoDigests) > 0 && !o.All) {
		return false
	}
	if !o.Until.IsZero() && !img.Created.Before(o.Until) {
		return false
	}
	if o.Keep != nil && o.Keep(img) {
		return false
	}
	running, stopped := usersOf(users, img.ID)
	return running == "" && stopped == ""
}
