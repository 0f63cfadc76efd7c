package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/cluster/store/storetest"
)

func TestEtcd(t *testing.T) {
	storetest.Run(t, func(t *testing.T, o store.Options) storetest.Filling {
		o.Backend = store.Etcd(store.EtcdOptions{Dir: t.TempDir()})
		s := open(t, o)
		return storetest.Filling{Read: s, Write: s}
	})
}

func openEtcd(t *testing.T, dir string, fill func(store.Object)) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Etcd(store.EtcdOptions{Dir: dir}), Default: fill, Detector: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.CheckFrozen(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEtcdKeepsWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	s := openEtcd(t, dir, nil)
	ctx := t.Context()
	want := map[string]string{}
	for i := range 30 {
		cm := configMap(i)
		o, err := s.Create(ctx, kinds.ConfigMaps, cm)
		if err != nil {
			t.Fatal(err)
		}
		want[o.GetName()] = o.GetResourceVersion()
	}
	if _, err := s.Delete(ctx, kinds.ConfigMaps, "ns", "cm000003", store.Preconditions{}); err != nil {
		t.Fatal(err)
	}
	delete(want, "cm000003")
	lease := func(ns string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "l"}}
	}
	elected, err := s.Create(ctx, kinds.Leases, lease("kube-system"))
	if err != nil {
		t.Fatal(err)
	}
	electedRV := elected.GetResourceVersion()
	if _, err := s.Create(ctx, kinds.Leases, lease(corev1.NamespaceNodeLease)); err != nil {
		t.Fatal(err)
	}
	last := s.Revision()
	closeStore(t, s)

	s = openEtcd(t, dir, func(o store.Object) {
		if cm, ok := o.(*corev1.ConfigMap); ok {
			cm.Data["defaulted"] = "yes"
		}
	})
	defer closeStore(t, s)
	if s.Revision() < last {
		t.Errorf("revision after a restart = %d; want at least %d", s.Revision(), last)
	}
	if got := s.Snapshot(kinds.ConfigMaps).Len(); got != len(want) {
		t.Errorf("%d config maps after a restart; want %d", got, len(want))
	}
	for name, rv := range want {
		cm, ok := store.Get[*corev1.ConfigMap](s, kinds.ConfigMaps, "ns", name)
		if !ok || cm.ResourceVersion != rv || cm.Data["k"] != "v" || cm.Data["defaulted"] != "yes" || cm.Kind != "ConfigMap" {
			t.Errorf("config map %s after a restart = %+v; want version %s, with its data and defaults", name, cm, rv)
		}
	}
	if l, ok := s.Snapshot(kinds.Leases).Get("kube-system", "l"); !ok || l.GetResourceVersion() != electedRV {
		t.Errorf("the election's lease after a restart = %v; want version %s", l, electedRV)
	}
	if _, ok := s.Snapshot(kinds.Leases).Get(corev1.NamespaceNodeLease, "l"); ok {
		t.Errorf("a node lease has survived a restart: heartbeats must stay off the disk")
	}
	if _, err := s.Watch(kinds.ConfigMaps, 2); err == nil {
		t.Errorf("watching from before the restart succeeded; want ErrTooOld")
	}
	o, err := s.Create(ctx, kinds.ConfigMaps, configMap(100))
	if err != nil {
		t.Fatal(err)
	}
	if rv, _ := store.ParseRevision(o.GetResourceVersion()); rv <= last {
		t.Errorf("a write after the restart is at revision %d; want after %d", rv, last)
	}
}

// undecodable is a kind for which every stored value is damaged.
type undecodable struct{ corev1.ConfigMap }

func (*undecodable) Unmarshal([]byte) error { return errors.New("unexpected end of data") }

func TestEtcdNamesWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	s := openEtcd(t, dir, nil)
	if _, err := s.Create(t.Context(), kinds.ConfigMaps, configMap(1)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	damaged := kinds.All()
	for i := range damaged {
		if damaged[i].Resource == kinds.ConfigMaps {
			damaged[i].New = func() store.Object { return &undecodable{} }
		}
	}
	_, err := store.Open(t.Context(), store.Options{Kinds: damaged, Backend: store.Etcd(store.EtcdOptions{Dir: dir})})
	if err == nil || !strings.Contains(err.Error(), "core/configmaps/ns/cm000001") {
		t.Errorf("opening a database with a damaged value = %v; want an error that names it", err)
	}
}

func TestEtcdNamesADamagedLog(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(log []byte) []byte
		want   string
	}{
		{"cut off", func(log []byte) []byte { return log[:len(bytes.TrimRight(log, "\x00"))/2] }, "has been cut off"},
		{"overwritten", func(log []byte) []byte { copy(log[8<<10:], "garbled."); return log }, "open "},
		{"half zeros", func(log []byte) []byte { clear(log[8<<10:]); return log }, "has been cut off"},
		{"empty", func([]byte) []byte { return nil }, "its files are damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openEtcd(t, dir, nil)
			for i := range 100 {
				if _, err := s.Create(t.Context(), kinds.ConfigMaps, configMap(i)); err != nil {
					t.Fatal(err)
				}
			}
			closeStore(t, s)
			logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
			if err != nil || len(logs) != 1 {
				t.Fatalf("the write-ahead logs are %v, %v; want one", logs, err)
			}
			whole, err := os.ReadFile(logs[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(logs[0], tt.damage(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Etcd(store.EtcdOptions{Dir: dir})})
			const remedy = ": restore the directory from a backup, or remove it"
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), remedy) {
				t.Errorf("opening a store whose write-ahead log was damaged (%s) = %v; want an error that names %s, and has %q and %q", tt.name, err, dir, tt.want, remedy)
			}
		})
	}
}

func TestEtcdOpensNoSocketAndIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := openEtcd(t, dir, nil)
	defer closeStore(t, s)
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory %s has mode %v, %v; want 0700", dir, info.Mode(), err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			err = fmt.Errorf("%s is a socket", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
