package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/build/snapshot"
	"slipway.dev/slipway/engine/database"
	"slipway.dev/slipway/engine/image"
)

// Images is what a builder needs of the image store. *image.Store is one.
type Images interface {
	snapshot.Images
	Get(ctx context.Context, ref string) (image.Image, error)
	List(ctx context.Context) ([]image.Image, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Rootfs(ctx context.Context, img image.Image) (image.Chain, error)
	WriteImage(ctx context.Context, config []byte, chain digest.Digest, names []string) (image.Image, error)
	Announce(ctx context.Context, img image.Image, tags []string)
	GC(ctx context.Context) error
}

// Options wires a Builder. Dir and Images are required; without a Runner, RUN is refused.
type Options struct {
	Dir    string // private directory, D/build
	Images Images
	Runner op.Runner // runs RUN; see package run
	Log    *slog.Logger
	// MaxCache bounds the build cache in bytes; 0 means 20 GiB.
	MaxCache int64
	Limits   buildcontext.Limits
	HTTP     *http.Client     // for ADD of an URL; nil: a client with time-outs
	Now      func() time.Time // nil: time.Now
	// Parallel bounds the operations that run at once; 0 means twice the processors.
	Parallel int64
}

// Builder builds images. Safe for concurrent use.
type Builder struct {
	o        Options
	log      *slog.Logger
	contexts *buildcontext.Store
	store    *snapshot.Store
	keys     *bboltcachestorage.Store
	cache    solver.CacheManager
	solver   *solver.Solver
	exports  exports

	builds sync.WaitGroup
	mu     sync.Mutex // guards closed and the start of builds
	closed bool
}

const defaultMaxCache = 20 << 30

func (o Options) orDefault() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxCache == 0 {
		o.MaxCache = defaultMaxCache
	}
	if o.Parallel == 0 {
		o.Parallel = 2 * int64(runtime.NumCPU())
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 20 * time.Second,
		}}
	}
	return o
}

// New opens the builder's directory and its cache.
func New(ctx context.Context, o Options) (_ *Builder, err error) {
	b := &Builder{o: o.orDefault()}
	b.log = b.o.Log
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open builder: %w", err), b.closeStores())
		}
	}()
	tmp := filepath.Join(o.Dir, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	for _, cache := range []string{"keys.db", "results.db"} {
		if err := database.SetAside(filepath.Join(o.Dir, cache), b.log); err != nil {
			return nil, fmt.Errorf("open build cache: %w", err)
		}
	}
	boot := bootID()
	if b.contexts, err = buildcontext.Open(filepath.Join(o.Dir, "contexts"), b.o.Limits, boot, b.o.Now, b.log); err != nil {
		return nil, err
	}
	if b.store, err = snapshot.Open(ctx, snapshot.Options{
		Dir: o.Dir, Images: o.Images, Contexts: b.contexts, Boot: boot, Log: b.log, Now: b.o.Now,
	}); err != nil {
		return nil, err
	}
	if b.keys, err = bboltcachestorage.NewStore(filepath.Join(o.Dir, "keys.db")); err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	b.cache = solver.NewCacheManager(ctx, "slipway", b.keys, b.store)
	b.solver = solver.NewSolver(solver.SolverOpt{
		DefaultCache: b.cache,
		ResolveOpFunc: op.Resolver(op.Options{
			Store: b.store, Images: &bases{b: b}, Runner: b.runner(), HTTP: b.o.HTTP, TmpDir: tmp,
			Slots: semaphore.NewWeighted(b.o.Parallel), Now: b.o.Now,
		}),
	})
	return b, nil
}

// bootID tells one boot of the machine from another.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity.NewID() // unknown: believe nothing unsynced of an earlier process
	}
	return strings.TrimSpace(string(data))
}

func (b *Builder) runner() op.Runner {
	if b.o.Runner == nil {
		return noRunner{}
	}
	return b.o.Runner
}

// Close waits for the builds that run, which the caller cancels through their contexts,
// and closes the cache.
func (b *Builder) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.builds.Wait()
	b.solver.Close()
	return b.closeStores()
}

func (b *Builder) closeStores() error {
	var errs []error
	if b.keys != nil {
		errs = append(errs, b.keys.Close())
	}
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	if b.contexts != nil {
		b.contexts.Close()
	}
	return errors.Join(errs...)
}

// begin counts a build in, unless the builder is closing.
func (b *Builder) begin() (end func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("the builder is shutting down")
	}
	b.builds.Add(1)
	return b.builds.Done, nil
}

// Request asks for one build.
type Request struct {
	Context    io.Reader // the context as a tar archive, compressed or not
	ContextDir string    // or a directory of this machine, packed as Context would be
	Dockerfile string    // its path in the context; empty: Dockerfile
	Inline     []byte    // or its content, when it lies outside the context

	Tags      []string
	Target    string
	BuildArgs map[string]string
	Labels    map[string]string
	// Contexts are named contexts: name to "docker-image://ref".
	Contexts map[string]string
	Secrets  map[string][]byte

	NoCache   bool
	NoCacheOf []string // stages whose cache is ignored
	Pull      bool     // ask the registry for newer base images
	Platform  string   // empty or this machine's
	Network   string   // default, none or host, for all RUNs

	Hostname     string
	ExtraHosts   []string // "name:address"
	ShmSize      int64
	Ulimits      []string // "nofile=1024:2048"
	CgroupParent string
	Memory       int64
	MemorySwap   int64
	CPUShares    int64
	CPUPeriod    int64
	CPUQuota     int64
	CpusetCpus   string
	CpusetMems   string

	// Auth gives credentials for pulls.
	Auth image.AuthFunc
}

// Result is a finished build.
type Result struct {
	ImageID digest.Digest
	Image   image.Image
	// Warnings are what the Dockerfile checks had to say.
	Warnings []Warning
}

// Warning is one finding of BuildKit's Dockerfile checks.
type Warning struct {
	Line    int // 0: none in particular
	Message string
	Detail  string
	URL     string
}
