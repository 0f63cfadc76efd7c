package store

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// A full quota is a read-only cluster, so it is generous.
	quotaBytes      = 8 << 30
	maxRequestBytes = 1536 << 10

	// One member: 50 ms ticks cost 0.6 % of a core idle and elect in 0.2 s; 10 ms cost three
	// times as much. Members that have peers need longer ones.
	tickMillis     = 50
	electionTicks  = 5
	snapshotCount  = 2000 // bounds the write-ahead log replayed at start
	catchUpEntries = 100  // raft entries kept in memory: nobody has to catch up
	walSegment     = 16 << 20

	startUsual   = time.Second // ten times what it takes with a quick disk: then the files are looked at
	startTimeout = time.Minute
)

var setWALSegment = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegment })

// startMember runs a cluster of one and returns when it has applied its whole log.
func startMember(ctx context.Context, o EtcdOptions, log *slog.Logger) (*etcdserver.EtcdServer, error) {
	setWALSegment()
	server, err := newServer(memberConfig(o, log))
	if err != nil {
		return nil, fmt.Errorf("etcd: open %s: %w: %s", o.Dir, err, remedy)
	}
	server.Start()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	late := time.NewTimer(startUsual)
	defer late.Stop()
	for {
		select {
		case <-server.ReadyNotify():
			return server, nil
		case <-server.StopNotify():
			return nil, fmt.Errorf("etcd: the member in %s stopped while it started: see the log before", o.Dir)
		case <-late.C:
			if err := cutOff(server, o.Dir); err != nil {
				server.HardStop()
				return nil, fmt.Errorf("etcd: %w: %s", err, remedy)
			}
		case <-ctx.Done():
			server.HardStop()
			return nil, fmt.Errorf("etcd: start the member in %s: %w: when that repeats, %s", o.Dir, context.Cause(ctx), remedy)
		}
	}
}

// cutOff says whether the write-ahead log has lost its end. A member whose database was written from entries that its
// log does not have never gets ready: whatever it proposes is given the place of a lost entry, and left out as applied long ago.
func cutOff(server *etcdserver.EtcdServer, dir string) error {
	// Read before the log, which grows meanwhile: what the database knows is in a whole log by now.
	known, _ := schema.ReadConsistentIndex(server.Backend().ReadTx())
	logs := filepath.Join(dir, "member", "wal")
	snapshots, err := wal.ValidSnapshotEntries(server.Logger(), logs)
	if err != nil || len(snapshots) == 0 {
		return nil // the member has read it: what it waits for is something else
	}
	log, err := wal.OpenForRead(server.Logger(), logs, snapshots[len(snapshots)-1])
	if err != nil {
		return nil
	}
	defer log.Close()
	_, _, entries, err := log.ReadAll()
	if err != nil {
		return nil // such as half of a record: the member is writing it
	}
	last := snapshots[len(snapshots)-1].GetIndex()
	if len(entries) > 0 {
		last = entries[len(entries)-1].GetIndex()
	}
	if last < known {
		return fmt.Errorf("the write-ahead log in %s has been cut off: it ends at entry %d, and the database was written from entries up to %d", logs, last, known)
	}
	return nil
}

const remedy = "restore the directory from a backup, or remove it to begin with an empty cluster"

// newServer opens the member's files. etcd panics over some kinds of damage.
func newServer(c config.ServerConfig) (server *etcdserver.EtcdServer, err error) {
	defer func() {
		if p := recover(); p != nil {
			server, err = nil, fmt.Errorf("its files are damaged: %v", p)
		}
	}()
	return etcdserver.NewServer(c)
}

func memberConfig(o EtcdOptions, log *slog.Logger) config.ServerConfig {
	const name = "slipway"
	// The address is an identity only, until there are peers: nothing listens.
	self := types.URLs{url.URL{Scheme: "unix", Host: name}}
	logger := zap.New(zapBridge{log.With("part", "etcd"), &repeats{}})
	return config.ServerConfig{
		Name:                name,
		DataDir:             o.Dir,
		PeerURLs:            self,
		InitialPeerURLsMap:  types.URLsMap{name: self},
		InitialClusterToken: name,
		NewCluster:          true,

		TickMs:                     tickMillis,
		ElectionTicks:              electionTicks,
		InitialElectionTickAdvance: true,
		PreVote:                    true,
		SnapshotCount:              snapshotCount,
		SnapshotCatchUpEntries:     catchUpEntries,
		MaxSnapFiles:               5,
		MaxWALFiles:                5,

		QuotaBackendBytes:           quotaBytes,
		MaxTxnOps:                   128,
		MaxRequestBytes:             maxRequestBytes,
		CompactionBatchLimit:        1000,
		CompactionSleepInterval:     10 * time.Millisecond,
		WarningApplyDuration:        500 * time.Millisecond,
		WarningUnaryRequestDuration: time.Second,
		WatchProgressNotifyInterval: 10 * time.Minute,
		DowngradeCheckTime:          5 * time.Second,
		BootstrapTimeout:            0,
		StrictReconfigCheck:         true,
		MaxLearners:                 1,
		AuthToken:                   "", // nobody authenticates: nothing listens
		BcryptCost:                  10, // never used, but zero is warned of at every start
		V2Deprecation:               config.V2DeprDefault,
		UnsafeNoFsync:               o.Unsynced,
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(name, logger),
		Metrics:                     "basic",
		Logger:                      logger,
	}
}

// zapBridge hands etcd's warnings and errors to slog. Its information is about itself
// (every election, every compaction), and would drown ours.
type zapBridge struct {
	log  *slog.Logger
	said *repeats // shared by all that With has made
}

// repeats holds back warnings that were just given. A member that starts tries to announce itself as fast as it can
// while it replays its log, and warns of every attempt: a thousand lines in a tenth of a second.
type repeats struct {
	mu      sync.Mutex
	message string    // guarded by mu
	at      time.Time // guarded by mu
}

const repeatAfter = time.Second

// campaignsLater is in a warning of an ordinary start. A member does not stand for election before it has applied what its
// log says about the members, which takes a moment on a slow machine, and it tries again at the next tick. Where it is the
// only one, nobody else could have been elected meanwhile, and there is nothing for anybody to do.
const campaignsLater = "still pending configuration changes to apply"

func (r *repeats) fresh(message string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if message == r.message && now.Sub(r.at) < repeatAfter {
		return false
	}
	r.message, r.at = message, now
	return true
}

func (b zapBridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }
func (b zapBridge) Sync() error                  { return nil }

func (b zapBridge) With(fields []zapcore.Field) zapcore.Core {
	return zapBridge{b.log.With(attributes(fields)...), b.said}
}

func (b zapBridge) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return c.AddCore(e, b)
	}
	return c
}

func (b zapBridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if strings.Contains(e.Message, campaignsLater) {
		return nil
	}
	if e.Level < zapcore.ErrorLevel && !b.said.fresh(e.Message, e.Time) {
		return nil
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	b.log.Log(context.Background(), level, e.Message, attributes(fields)...)
	return nil
}

func attributes(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var out []any
	for _, f := range fields {
		f.AddTo(enc)
	}
	for k, v := range enc.Fields {
		out = append(out, k, v)
	}
	return out
}
