package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Etcd keeps objects in an etcd member inside this process. A resource version is the mod
// revision of the object's key, and every write is a transaction of its own: keys written
// together would share a revision, and a watch resumed inside it would lose the rest.
//
// The member is called directly, without gRPC, and opens no socket at all: a cluster of
// one has no peers and its only client is this store.
func Etcd(o EtcdOptions) Backend { return etcdBackend{o} }

// EtcdOptions say where the data is. Dir is created when it is missing.
type EtcdOptions struct {
	Dir string
	// Unsynced leaves out every fsync: for benchmarks of everything but the disk.
	Unsynced bool
}

type etcdBackend struct{ o EtcdOptions }

func (etcdBackend) clock(shared *clock) *clock { return shared }

func (b etcdBackend) start(ctx context.Context, s *Store, o Options) (engine, error) {
	disk := newDisk(b.o.Dir)
	if err := os.MkdirAll(b.o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if err := disk.check(); err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	server, err := startMember(ctx, b.o, s.log)
	if err != nil {
		return nil, err
	}
	e := &etcd{server: server, kv: v3rpc.NewQuotaKVServer(server), log: s.log, clock: s.clock, fill: o.Default,
		disk: disk, tables: map[string]*table{}, pending: map[uint64]*pendingWrite{}, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	e.ids.Store(randomBase())
	for _, t := range s.tables {
		e.tables[tableKey(t)] = t
	}
	if err := e.load(ctx); err != nil {
		server.HardStop()
		return nil, err
	}
	return e, nil
}

// etcd is the engine of the durable keyspace.
type etcd struct {
	server *etcdserver.EtcdServer
	kv     pb.KVServer // through the quota check
	log    *slog.Logger
	disk   *disk
	clock  *clock
	fill   func(Object)
	tables map[string]*table // by tableKey

	ids       atomic.Uint64
	stream    mvcc.WatchStream
	gone      chan struct{} // closed when nothing will be published any more
	tasks     sync.WaitGroup
	compacted int64

	// mu guards what writers, receive and publish share. No table's lock is taken under it.
	mu      sync.Mutex
	pending map[uint64]*pendingWrite // by write id, until it is published or has failed
	queue   []*mvccpb.Event
	ended   bool
	wake    chan struct{} // of one: the queue is not empty, or has ended
}

// pendingWrite is a write on its way through raft. Publishing takes the object from here,
// where it lies decoded and frozen, instead of decoding what came back.
type pendingWrite struct {
	w    *write
	it   *item
	done chan struct{} // closed once it is published
}

// randomBase makes the write ids of different processes differ: ids are kept in the data.
func randomBase() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

func (e *etcd) commit(ctx context.Context, w *write) (*item, error) {
	for {
		cur := w.t.get(w.key)
		if err := w.check(cur); err != nil {
			return nil, err
		}
		it, rev, err := e.attempt(ctx, w, cur)
		if err != nil || it != nil {
			return it, err
		}
		// Somebody was quicker. Once the cache has seen it, either the check fails and
		// says why, or the write was unconditional and is tried again.
		if err := e.clock.wait(ctx, rev); err != nil {
			return nil, err
		}
		if w.expect != 0 {
			if err := w.check(w.t.get(w.key)); err != nil {
				return nil, err
			}
			return nil, apierrors.NewConflict(w.t.kind.Resource, w.name(), errChanged)
		}
	}
}

// attempt proposes the write on top of cur. Without an item and an error it lost against
// a write that is visible at the returned revision.
func (e *etcd) attempt(ctx context.Context, w *write, cur *item) (*item, int64, error) {
	var expect int64
	if cur != nil {
		expect = cur.rev
	}
	key := []byte(objectKey(w.t, w.key))
	if w.op == opDelete {
		rev, ok, err := e.transact(ctx, w, expect, key, deleteOp(key))
		if err != nil || !ok {
			return nil, rev, err
		}
		if err := e.clock.wait(ctx, rev); err != nil {
			return nil, 0, err
		}
		return w.t.tombstone(cur, rev), rev, nil
	}
	id := e.ids.Add(1)
	p := &pendingWrite{w: w, done: make(chan struct{})}
	e.mu.Lock()
	e.pending[id] = p
	e.mu.Unlock()
	rev, ok, err := e.transact(ctx, w, expect, key, putOp(key, seal(id, 0, w.data)))
	if err != nil || !ok {
		e.abandon(id)
		return nil, rev, err
	}
	select {
	case <-p.done:
		return p.it, rev, nil
	case <-e.gone:
		return nil, 0, ErrClosed
	case <-ctx.Done():
		return nil, 0, apierrors.NewTimeoutError(fmt.Sprintf("%s %q was written at revision %d, but its watch event is late: %v", w.t.kind.Resource, w.key, rev, context.Cause(ctx)), 1)
	}
}

func (e *etcd) abandon(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pending, id)
}

// admit sees to it that etcd finds the room on the disk that a write needs.
func (e *etcd) admit(w *write) error {
	if err := e.disk.admit(w); err != nil {
		return err
	}
	return e.disk.reserve(e.server.Backend().Size())
}

// transact runs op if the key is still at the expected revision (0: absent).
func (e *etcd) transact(ctx context.Context, w *write, expect int64, key []byte, op *pb.RequestOp) (int64, bool, error) {
	if err := e.admit(w); err != nil {
		return 0, false, err
	}
	resp, err := e.kv.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: expect}}},
		Success: []*pb.RequestOp{op},
	})
	if err != nil {
		return 0, false, e.explain(w, err)
	}
	return resp.Header.Revision, resp.Succeeded, nil
}

func putOp(key, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
}

func deleteOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}

// explain turns etcd's error into what an API client understands.
func (e *etcd) explain(w *write, err error) error {
	what := fmt.Sprintf("write %s %q", w.t.kind.Resource, w.key)
	switch {
	case errors.Is(err, rpctypes.ErrGRPCNoSpace):
		return apierrors.NewInternalError(fmt.Errorf("%s: the cluster's database has reached its quota of %d GB and is read-only until objects are deleted and it is compacted", what, quotaBytes>>30))
	case errors.Is(err, rpctypes.ErrGRPCRequestTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s: an object may not exceed %d KB", what, maxRequestBytes>>10))
	case errors.Is(err, etcderrors.ErrTooManyRequests), errors.Is(err, rpctypes.ErrGRPCRequestTooManyRequests):
		return apierrors.NewTooManyRequests(what+": the database is overloaded", 1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, rpctypes.ErrGRPCTimeout):
		return apierrors.NewTimeoutError(fmt.Sprintf("%s: %v; it may or may not have been written", what, err), 1)
	case errors.Is(err, rpctypes.ErrGRPCStopped):
		return fmt.Errorf("%s: %w", what, ErrClosed)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// record keeps a volatile object that must survive, beside the objects and out of their
// revisions: the one it was given is written down with it.
func (e *etcd) record(ctx context.Context, w *write, rev int64) error {
	key := []byte(journalKey(w.t, w.key))
	op := deleteOp(key)
	if w.op != opDelete {
		op = putOp(key, seal(0, rev, w.data))
	}
	if err := e.admit(w); err != nil {
		return err
	}
	_, err := e.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{op}})
	if err != nil {
		return e.explain(w, err)
	}
	return nil
}

func (e *etcd) compact(ctx context.Context, rev int64) error {
	if rev <= e.compacted {
		return nil
	}
	_, err := e.server.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		return err
	}
	e.compacted = rev
	return nil
}

// anyWatchID lets etcd number the watch.
const anyWatchID mvcc.WatchID = 0

// follow begins to publish what is committed after rev.
func (e *etcd) follow(ctx context.Context, rev int64) error {
	e.stream = e.server.Watchable().NewWatchStream()
	if _, err := e.stream.Watch(ctx, anyWatchID, []byte(keyRoot), []byte(keyRootEnd), rev+1); err != nil {
		return fmt.Errorf("watch the database: %w", err)
	}
	e.tasks.Go(e.receive)
	e.tasks.Go(e.publish)
	return nil
}

// receive only queues: a watcher whose channel is full is served late by etcd, and then
// every writer would wait for it.
func (e *etcd) receive() {
	for resp := range e.stream.Chan() {
		e.push(resp.Events, false)
	}
	e.push(nil, true)
}

func (e *etcd) push(events []*mvccpb.Event, ended bool) {
	e.mu.Lock()
	e.queue = append(e.queue, events...)
	e.ended = e.ended || ended
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// publish makes commits visible, in the order of revisions, in as few steps as there are
// tables concerned.
func (e *etcd) publish() {
	for range e.wake {
		e.mu.Lock()
		events, ended := e.queue, e.ended
		e.queue = nil
		e.mu.Unlock()
		e.publishAll(events)
		if ended {
			return
		}
	}
}

func (e *etcd) publishAll(events []*mvccpb.Event) {
	if len(events) == 0 {
		return
	}
	now := time.Now()
	changes := map[*table][]change{}
	var done []*pendingWrite
	for _, ev := range events {
		t, key, ok := e.place(ev.Kv.Key)
		if !ok {
			continue
		}
		c, p := e.change(t, key, ev)
		if c.it == nil {
			continue
		}
		changes[t] = append(changes[t], c)
		if p != nil {
			done = append(done, p)
		}
	}
	for t, list := range changes {
		t.publish(list, now)
	}
	e.clock.advance(events[len(events)-1].Kv.ModRevision)
	for _, p := range done {
		close(p.done)
	}
}

// change is what an event of etcd means to a table.
func (e *etcd) change(t *table, key string, ev *mvccpb.Event) (change, *pendingWrite) {
	rev := ev.Kv.ModRevision
	if ev.Type == mvccpb.Event_DELETE {
		return change{it: &item{key: key, rev: rev}, deleted: true}, nil
	}
	id, _, data, err := unseal(ev.Kv.Value)
	if err != nil {
		e.log.Error("a stored object cannot be read", "key", string(ev.Kv.Key), "revision", rev, "error", err)
		return change{}, nil
	}
	if p := e.take(id); p != nil {
		p.it = t.seal(p.w.obj, key, rev, len(data))
		return change{it: p.it}, p
	}
	it, err := e.decode(t, key, rev, data)
	if err != nil {
		e.log.Error("a stored object cannot be read", "key", string(ev.Kv.Key), "revision", rev, "error", err)
		return change{}, nil
	}
	return change{it: it}, nil
}

func (e *etcd) take(id uint64) *pendingWrite {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pending[id]
	delete(e.pending, id)
	return p
}

func (e *etcd) close() error {
	e.stream.Close()
	e.tasks.Wait()
	close(e.gone)
	e.server.Stop()
	return nil
}
