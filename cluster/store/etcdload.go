package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"golang.org/x/sync/errgroup"
)

// Keys are /slipway/objects/GROUP/RESOURCE/[NAMESPACE/]NAME, with "core" for the group
// without a name, and /slipway/journal/... for volatile objects that survive.
const (
	keyRoot       = "/slipway/"
	keyRootEnd    = "/slipway0" // the first string after all that begin with keyRoot
	objectsPrefix = keyRoot + "objects/"
	journalPrefix = keyRoot + "journal/"
)

func tableKey(t *table) string {
	group := t.kind.Resource.Group
	if group == "" {
		group = "core"
	}
	return group + "/" + t.kind.Resource.Resource
}

func objectKey(t *table, key string) string  { return objectsPrefix + tableKey(t) + "/" + key }
func journalKey(t *table, key string) string { return journalPrefix + tableKey(t) + "/" + key }

// place finds the table and the key in it; false for keys that are not of this store's objects.
func (e *etcd) place(key []byte) (*table, string, bool) {
	rest, ok := strings.CutPrefix(string(key), objectsPrefix)
	if !ok {
		return nil, "", false
	}
	group := strings.IndexByte(rest, '/')
	if group < 0 {
		return nil, "", false
	}
	end := strings.IndexByte(rest[group+1:], '/')
	if end < 0 {
		return nil, "", false
	}
	end += group + 1
	t, ok := e.tables[rest[:end]]
	return t, rest[end+1:], ok
}

// A value is an envelope of fixed size and the object's encoding. The envelope has room for
// the id of the write, by which the writer recognises its own object when it comes back,
// and for a revision (of journalled objects).
const (
	envelopeMark = "SW1\x00"
	envelopeSize = len(envelopeMark) + 8 + 8
)

var errNotOurs = errors.New("the value does not begin as Slipway writes it: the database is damaged or was written by something else")

func seal(id uint64, rev int64, data []byte) []byte {
	v := make([]byte, envelopeSize, envelopeSize+len(data))
	copy(v, envelopeMark)
	binary.LittleEndian.PutUint64(v[len(envelopeMark):], id)
	binary.LittleEndian.PutUint64(v[len(envelopeMark)+8:], uint64(rev))
	return append(v, data...)
}

func unseal(v []byte) (id uint64, rev int64, data []byte, err error) {
	if len(v) < envelopeSize || string(v[:len(envelopeMark)]) != envelopeMark {
		return 0, 0, nil, errNotOurs
	}
	id = binary.LittleEndian.Uint64(v[len(envelopeMark):])
	rev = int64(binary.LittleEndian.Uint64(v[len(envelopeMark)+8:]))
	return id, rev, v[envelopeSize:], nil
}

// decode makes an item of stored bytes: decoded, completed with defaults, encoded once so
// that it is safe to share.
func (e *etcd) decode(t *table, key string, rev int64, data []byte) (*item, error) {
	o, err := decode(&t.kind, data)
	if err != nil {
		return nil, err
	}
	if e.fill != nil {
		e.fill(o)
	}
	if _, err := encode(o); err != nil {
		return nil, err
	}
	return t.seal(o, key, rev, len(data)), nil
}

const loadPage = 2000

// load fills the tables with the newest state and begins to follow it.
func (e *etcd) load(ctx context.Context) error {
	kv := e.server.KV()
	rev := kv.Rev()
	// Pages are read one after the other and decoded at once: decoding is the larger part.
	decoders, ctx := errgroup.WithContext(ctx)
	decoders.SetLimit(runtime.GOMAXPROCS(0))
	loaded := map[*table]*[][]*item{}
	for _, t := range e.tables {
		pages := &[][]*item{}
		loaded[t] = pages
		prefix := objectKey(t, "")
		if t.kind.Volatile {
			prefix = journalKey(t, "")
		}
		if err := e.loadTable(ctx, kv, t, prefix, rev, decoders, pages); err != nil {
			return errors.Join(err, decoders.Wait())
		}
	}
	if err := decoders.Wait(); err != nil {
		return err
	}
	for t, pages := range loaded {
		var items []*item
		for _, p := range *pages {
			items = append(items, p...)
		}
		floor := rev
		if t.kind.Volatile {
			floor = t.clock.rev.Load()
		}
		t.load(items, floor)
	}
	e.clock.advance(rev)
	return e.follow(ctx, rev)
}

func (e *etcd) loadTable(ctx context.Context, kv mvcc.KV, t *table, prefix string, rev int64, decoders *errgroup.Group, pages *[][]*item) error {
	end := prefix[:len(prefix)-1] + "0" // '0' follows '/'
	for start := prefix; ; {
		r, err := kv.Range(ctx, []byte(start), []byte(end), mvcc.RangeOptions{Limit: loadPage, Rev: rev})
		if err != nil {
			return fmt.Errorf("read %s from the database: %w", t.kind.Resource, err)
		}
		if len(r.KVs) == 0 {
			return nil
		}
		page := make([]*item, len(r.KVs))
		*pages = append(*pages, page)
		decoders.Go(func() error { return e.decodePage(t, prefix, r.KVs, page) })
		if len(r.KVs) < loadPage {
			return nil
		}
		start = string(r.KVs[len(r.KVs)-1].Key) + "\x00"
	}
}

func (e *etcd) decodePage(t *table, prefix string, kvs []*mvccpb.KeyValue, page []*item) error {
	for i, kv := range kvs {
		_, rev, data, err := unseal(kv.Value)
		if err == nil {
			if !t.kind.Volatile {
				rev = kv.ModRevision
			}
			page[i], err = e.decode(t, strings.TrimPrefix(string(kv.Key), prefix), rev, data)
		}
		if err != nil {
			return fmt.Errorf("object %s in the database cannot be read: %w", kv.Key, err)
		}
	}
	return nil
}
