package snapshot

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"
)

// views shares the read-only mounts of chains between operations: several COPY --from of
// one stage mount it once.
type views struct {
	images Images

	mu   sync.Mutex // guards byID and the counts
	byID map[string]*view
}

type view struct {
	ready   chan struct{} // closed when dir or err is set
	dir     string
	unmount func()
	err     error
	refs    int
}

func newViews(images Images) *views { return &views{images: images, byID: map[string]*view{}} }

func (v *views) open(ctx context.Context, chain digest.Digest) (string, func(), error) {
	key := chainKey(chain)
	v.mu.Lock()
	w := v.byID[key]
	if w == nil {
		w = &view{ready: make(chan struct{})}
		v.byID[key] = w
		w.refs++
		v.mu.Unlock()
		w.dir, w.unmount, w.err = v.images.Mount(ctx, chain)
		close(w.ready)
	} else {
		w.refs++
		v.mu.Unlock()
		<-w.ready
	}
	if w.err != nil {
		v.drop(key, w)
		return "", nil, w.err
	}
	var once sync.Once
	return w.dir, func() { once.Do(func() { v.drop(key, w) }) }, nil
}

func (v *views) drop(key string, w *view) {
	v.mu.Lock()
	w.refs--
	last := w.refs == 0
	if last && v.byID[key] == w {
		delete(v.byID, key)
	}
	v.mu.Unlock()
	if last && w.unmount != nil {
		w.unmount()
	}
}

// close unmounts whatever is still open.
func (v *views) close() {
	v.mu.Lock()
	left := v.byID
	v.byID = map[string]*view{}
	v.mu.Unlock()
	for _, w := range left {
		if w.unmount != nil {
			w.unmount()
		}
	}
}
