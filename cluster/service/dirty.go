package service

import (
	"strings"
	"sync"
)

// Kinds of things that have to be looked at again.
const (
	kindService   = "service"
	kindPod       = "pod"
	kindHostPorts = "host ports" // of a pod; few have any
	kindNamespace = "namespace"
	kindPolicy    = "policy"
)

// dirtySet collects keys of changed objects: however often one changed, it is looked at
// once, in its newest version.
type dirtySet struct {
	mu   *sync.Mutex
	keys map[string]map[string]bool
	wake chan struct{}
}

func newDirtySet() dirtySet {
	return dirtySet{mu: &sync.Mutex{}, keys: map[string]map[string]bool{}, wake: make(chan struct{}, 1)}
}

func (d *dirtySet) add(kind, key string) {
	d.mu.Lock()
	if d.keys[kind] == nil {
		d.keys[kind] = map[string]bool{}
	}
	d.keys[kind][key] = true
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirtySet) take() map[string]map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := d.keys
	d.keys = map[string]map[string]bool{}
	return taken
}

// putBack keeps what could not be done for the next round, without waking anybody.
func (d *dirtySet) putBack(todo map[string]map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for kind, keys := range todo {
		if d.keys[kind] == nil {
			d.keys[kind] = map[string]bool{}
		}
		for key := range keys {
			d.keys[kind][key] = true
		}
	}
}

func split(key string) (namespace, name string) {
	namespace, name, ok := strings.Cut(key, "/")
	if !ok {
		return "", key
	}
	return namespace, name
}
