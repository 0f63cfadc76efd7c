package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// records is the directory of what must be known after a restart: one JSON file
// per network, endpoint and pod.
type records struct{ dir string }

const (
	kindNetwork  = "networks"
	kindEndpoint = "endpoints"
	kindPod      = "pods"
	kindCursor   = "cursors" // where each address allocator continues
)

// node is what this machine chose once.
type node struct {
	Pods     netip.Prefix `json:"pods"`
	Services netip.Prefix `json:"services"`
}

// podRecord is one pod's address.
type podRecord struct {
	ID     string     `json:"id"`
	Addr   netip.Addr `json:"addr"`
	HostIf string     `json:"hostIf"`
}

func openRecords(dir string) (records, error) {
	r := records{dir}
	for _, kind := range []string{kindNetwork, kindEndpoint, kindPod, kindCursor} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o700); err != nil {
			return r, fmt.Errorf("open network records: %w", err)
		}
	}
	return r, nil
}

func (r records) path(kind, id string) string { return filepath.Join(r.dir, kind, id+".json") }

// put writes a record; durable says whether it has to survive a power cut.
func (r records) put(kind, id string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s record %s: %w", kind, id, err)
	}
	path := r.path(kind, id)
	if err := writeFile(path, b, durable); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// writeFile puts a whole file in the place of another: a process that dies meanwhile, or
// finds the disk full, leaves the one there was.
func writeFile(path string, b []byte, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r records) remove(kind, id string, durable bool) error {
	path := r.path(kind, id)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// load reads all records of a kind, and removes what was only being written. A damaged one
// is an error that names the file: a network that silently vanished would take its
// containers' addresses with it.
func load[T any](r records, kind string) (map[string]T, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, kind))
	if err != nil {
		return nil, fmt.Errorf("read network records: %w", err)
	}
	all := make(map[string]T, len(entries))
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			if err := os.Remove(filepath.Join(r.dir, kind, e.Name())); err != nil {
				return nil, fmt.Errorf("remove an unfinished network record: %w", err)
			}
			continue
		}
		v, err := loadOne[T](r, kind, id)
		if errors.Is(err, io.ErrUnexpectedEOF) && kind != kindNetwork {
			continue // written just before a power cut, which only networks are to survive
		}
		if err != nil {
			return nil, err
		}
		all[id] = v
	}
	return all, nil
}

func loadOne[T any](r records, kind, id string) (T, error) {
	var v T
	path := r.path(kind, id)
	b, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if len(b) == 0 {
		return v, fmt.Errorf("record %s is empty: %w; restore it from a backup or remove the file", path, io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("record %s is damaged: %w; restore it from a backup or remove the file", path, err)
	}
	return v, nil
}
