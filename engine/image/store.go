package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/database"
	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/tree"
)

// Snapshotter is the name under which layer chains are snapshots: a container record
// with this Snapshotter and a chain id as SnapshotKey keeps that chain from the collector.
const Snapshotter = "overlay"

// namespace is the one containerd namespace that all records live in.
const namespace = "slipway"

// leaseTime bounds how long anything is kept that nothing refers to any more.
const leaseTime = 24 * time.Hour

// labelOperation marks a lease that ends with the process at the latest.
const labelOperation = "slipway.dev/operation"

// Publisher hears of what happened to images. *event.Bus is one.
type Publisher interface{ Publish(event.Event) }

// Limiter bounds work that keeps a processor busy: hashing, compressing, unpacking.
// *semaphore.Weighted is one.
type Limiter interface {
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

// Limits bound what one hostile archive or layer may cost. Zero fields take defaults.
type Limits struct {
	LayerBytes int64 // unpacked bytes of one layer; default 64 GiB
	Entries    int   // files of one layer, or members of one archive; default 4 million
	ReserveMB  int64 // unpacking stops when less than this is free on the disk; default 256
}

// Options are what a store needs. Root is required.
type Options struct {
	Root   string // the data directory; the store keeps content, snapshots, drafts and engine.db in it
	Log    *slog.Logger
	Events Publisher
	CPU    Limiter
	Limits Limits
	// Registries tells whether a host ("localhost:5000") is the built-in registry of
	// this daemon: pushes to it and pulls from it move no bytes. Nil: none is.
	Registries func(host string) bool
	// Insecure tells whether a registry may be reached without TLS or with a certificate
	// that nobody vouches for. Localhost and 127.0.0.0/8 always may.
	Insecure func(host string) bool
	// CertsDir holds HOST/ca.crt, HOST/client.cert and HOST/client.key; default /etc/docker/certs.d.
	CertsDir string
}

// Store holds the images of one machine. Its methods may be called from any goroutine.
type Store struct {
	root    string
	log     *slog.Logger
	events  Publisher
	cpu     Limiter
	limits  Limits
	local   func(host string) bool
	remote  remoteOptions
	bolt    *bbolt.DB
	meta    *metadata.DB
	content content.Store
	backing snapshots.Snapshotter
	snaps   snapshots.Snapshotter
	images  images.Store
	leases  leases.Manager
	names   nameIndex
	layers  layerIndex
	parsed  imageCache
	repos   *Repositories
	collect *collector
	users   atomic.Pointer[func() []User]
}

// Open opens the store in o.Root, making it when it is not there, and throws away what a
// killed daemon left half done.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := newStore(o)
	if err := s.openDisk(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", o.Root, err)
	}
	ctx = s.scope(ctx)
	if err := s.load(ctx); err != nil {
		s.closeDisk()
		return nil, fmt.Errorf("open image store %s: %w", o.Root, err)
	}
	s.collect = startCollector(s)
	return s, nil
}

func newStore(o Options) *Store {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = silent{}
	}
	if o.CPU == nil {
		o.CPU = unlimited{}
	}
	if o.Registries == nil {
		o.Registries = func(string) bool { return false }
	}
	if o.Insecure == nil {
		o.Insecure = func(string) bool { return false }
	}
	if o.CertsDir == "" {
		o.CertsDir = "/etc/docker/certs.d"
	}
	if o.Limits.LayerBytes == 0 {
		o.Limits.LayerBytes = 64 << 30
	}
	if o.Limits.Entries == 0 {
		o.Limits.Entries = 4 << 20
	}
	if o.Limits.ReserveMB == 0 {
		o.Limits.ReserveMB = 256
	}
	s := &Store{
		root: o.Root, log: o.Log, events: o.Events, cpu: o.CPU, limits: o.Limits, local: o.Registries,
		remote: remoteOptions{insecure: o.Insecure, certsDir: o.CertsDir},
	}
	s.repos = &Repositories{store: s, members: map[string]*members{}, uploads: map[string]*Upload{}}
	return s
}

func (s *Store) openDisk() (err error) {
	defer func() {
		if err != nil {
			s.closeDisk()
		}
	}()
	// Drafts belong to operations, and operations do not outlive the process. What a
	// killed daemon left mounted there goes first: removal must not reach through it.
	if err := mount.UnmountRecursive(s.path("drafts"), mntDetach); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := tree.Remove(s.path("drafts")); err != nil {
		return err
	}
	for _, dir := range []string{"", "content", "snapshots", "drafts", "empty"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	cs, err := local.NewStore(s.path("content"))
	if err != nil {
		return err
	}
	s.backing, err = overlay.NewSnapshotter(s.path("snapshots"), overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return fmt.Errorf("%w (the data directory must be on a file system that overlay can stack on, such as ext4 or xfs)", err)
	}
	if err := s.checkDatabase(); err != nil {
		return err
	}
	s.bolt, err = bbolt.Open(s.path("engine.db"), 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open engine.db: %w (is another daemon using this directory?)", err)
	}
	s.meta = metadata.NewDB(s.bolt, cs, map[string]snapshots.Snapshotter{Snapshotter: s.backing})
	s.content = s.meta.ContentStore()
	s.snaps = s.meta.Snapshotter(Snapshotter)
	s.images = metadata.NewImageStore(s.meta)
	s.leases = metadata.NewLeaseManager(s.meta)
	return nil
}

// checkDatabase refuses a damaged engine.db, and a new one where there was one before: all images and containers would
// be forgotten, and what belongs to them removed.
func (s *Store) checkDatabase() error {
	path := s.path("engine.db")
	const remedy = "restore it from a backup, or start on a new data directory"
	if err := database.Check(path); err != nil {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		return nil
	}
	known, err := filepath.Glob(s.path("content", "blobs", "sha256", "*"))
	if err != nil || len(known) == 0 {
		return err
	}
	return fmt.Errorf("%s is missing or empty, and there are images in %s: %s", path, s.path("content"), remedy)
}

func (s *Store) load(ctx context.Context) error {
	if err := s.meta.Init(ctx); err != nil {
		return fmt.Errorf("prepare engine.db: %w", err)
	}
	if err := s.layers.reload(ctx, s.snaps); err != nil {
		return fmt.Errorf("read layers: %w", err)
	}
	if err := s.names.reload(ctx, s.images); err != nil {
		return fmt.Errorf("read image names: %w", err)
	}
	return s.endDeadOperations(ctx)
}

// endDeadOperations drops the leases and unfinished writes of a killed process: the
// collector then takes what they held.
func (s *Store) endDeadOperations(ctx context.Context) error {
	left, err := s.leases.List(ctx, "labels."+strconv.Quote(labelOperation))
	if err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	for _, l := range left {
		s.endLease(ctx, l)
	}
	unfinished, err := s.content.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("read unfinished writes: %w", err)
	}
	for _, u := range unfinished {
		if err := s.content.Abort(ctx, u.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("end unfinished write %s: %w", u.Ref, err)
		}
	}
	return nil
}

// Close waits for the collector and closes the databases. Nothing may use the store then.
func (s *Store) Close() error {
	s.collect.stop()
	s.repos.closeUploads()
	return s.closeDisk()
}

func (s *Store) closeDisk() error {
	var errs []error
	if s.backing != nil {
		errs = append(errs, s.backing.Close())
	}
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	return errors.Join(errs...)
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// scope puts the store's containerd namespace into ctx, as all of its packages ask for.
func (s *Store) scope(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Lease returns a context under which everything that is written is kept from the
// collector until done is called. An operation that already has a lease keeps it.
func (s *Store) Lease(ctx context.Context) (_ context.Context, done func(), err error) {
	ctx = s.scope(ctx)
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, func() {}, nil
	}
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime), leases.WithLabel(labelOperation, "yes"))
	if err != nil {
		return nil, nil, fmt.Errorf("start image operation: %w", err)
	}
	var once sync.Once
	return leases.WithLease(ctx, l.ID), func() { once.Do(func() { s.endLease(ctx, l) }) }, nil
}

func (s *Store) endLease(ctx context.Context, l leases.Lease) {
	// The operation may have been cancelled; its lease goes all the same.
	if err := s.leases.Delete(context.WithoutCancel(ctx), l); err != nil {
		s.log.Warn("lease stays until it expires", "lease", l.ID, "err", err)
	}
}

// Leases is the lease manager of the store, for owners that keep things longer than one
// operation lasts (a build cache, an upload). Contexts must come from Context or Lease.
func (s *Store) Leases() leases.Manager { return s.leases }

// Context prepares ctx for direct calls to Content, Snapshots, Containers and Leases.
func (s *Store) Context(ctx context.Context) context.Context { return s.scope(ctx) }

// Content is the content store: manifests, configurations and pushed blobs.
func (s *Store) Content() content.Store { return s.content }

// Snapshots holds the layer chains: committed snapshots named by chain id.
func (s *Store) Snapshots() snapshots.Snapshotter { return s.snaps }

// Containers is the container bucket of the same database. A record there with
// Snapshotter and a chain id as SnapshotKey keeps that chain.
func (s *Store) Containers() containers.Store { return metadata.NewContainerStore(s.meta) }

// Metadata is the database that garbage collection works on.
func (s *Store) Metadata() *metadata.DB { return s.meta }

// DB is the bolt file itself, for rooms that keep buckets of their own in it.
func (s *Store) DB() *bbolt.DB { return s.bolt }

// Sync makes everything written below the data directory so far durable.
func (s *Store) Sync(context.Context) error {
	d, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", s.root, err)
	}
	return nil
}

// limited runs fn while holding one share of the processors.
func (s *Store) limited(ctx context.Context, fn func() error) error {
	sh := &share{cpu: s.cpu}
	if err := sh.take(ctx); err != nil {
		return err
	}
	defer sh.giveBack()
	return fn()
}

// share is one share of the processors, held or not.
type share struct {
	cpu  Limiter
	held bool
}

func (s *share) take(ctx context.Context) error {
	if err := s.cpu.Acquire(ctx, 1); err != nil {
		return err
	}
	s.held = true
	return nil
}

func (s *share) giveBack() {
	if s.held {
		s.held = false
		s.cpu.Release(1)
	}
}

// patientReader reads what a client sends, and gives its share of the processors back
// while it waits: a client that stops in the middle must not stop everybody else.
type patientReader struct {
	r     io.Reader
	ctx   context.Context // of the operation that the reader belongs to
	share *share
}

func (p *patientReader) Read(b []byte) (int, error) {
	if !p.share.held {
		return p.r.Read(b)
	}
	p.share.giveBack()
	n, err := p.r.Read(b)
	if taken := p.share.take(p.ctx); taken != nil {
		return n, taken
	}
	return n, err
}

type silent struct{}

func (silent) Publish(event.Event) {}

type unlimited struct{}

func (unlimited) Acquire(context.Context, int64) error { return nil }
func (unlimited) Release(int64)                        {}

func closeQuietly(c io.Closer) { _ = c.Close() }
