package api

import (
	"testing"

	"slipway.dev/slipway/cluster/store"
)

// A panic while a list is encoded ends one request, and not every request for that list until something changes.
func TestAPanicIsNotCached(t *testing.T) {
	var c listCache
	defer c.clear()
	get := func(encode func() ([]byte, error)) (body []byte, panicked any, err error) {
		defer func() { panicked = recover() }()
		body, err = c.get(listKey{path: "/api/v1/pods"}, store.Snapshot{}, 0, encode)
		return body, nil, err
	}
	if _, panicked, _ := get(func() ([]byte, error) { panic("bad object") }); panicked != "bad object" {
		t.Fatalf("the panic became %v", panicked)
	}
	body, panicked, err := get(func() ([]byte, error) { return []byte("list"), nil })
	if string(body) != "list" || panicked != nil || err != nil {
		t.Errorf("after a panic the list is %q, %v, %v; want it encoded anew", body, panicked, err)
	}
}
