package volume_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/volume"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// storage remembers what was removed, and fails while broken is set.
type storage struct {
	mu      sync.Mutex
	removed []string
	broken  error
}

func (s *storage) set(broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

func (s *storage) gone() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed
}

func (s *storage) Path(v string) (string, string) { return "/data/" + v, "n1" }

func (s *storage) Remove(_ context.Context, v string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.removed = append(s.removed, v)
	return nil
}

func claim(name, class, size string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	if class != "-" {
		c.Spec.StorageClassName = &class
	}
	return c
}

func disk(name, class, size string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}, StorageClassName: class,
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		},
	}
}

func show(c *controllertest.Cluster) string {
	var out []string
	for _, x := range store.List[*corev1.PersistentVolumeClaim](c.Store, kinds.PersistentVolumeClaims, "") {
		v := x.Spec.VolumeName
		if strings.HasPrefix(v, "pvc-") {
			v = "made"
		}
		out = append(out, fmt.Sprintf("%s=%s(%s)", x.Name, x.Status.Phase, v))
	}
	for _, v := range store.List[*corev1.PersistentVolume](c.Store, kinds.PersistentVolumes, "") {
		n := v.Name
		if strings.HasPrefix(n, "pvc-") {
			n = "made"
		}
		out = append(out, fmt.Sprintf("%s=%s", n, v.Status.Phase))
	}
	return strings.Join(out, " ")
}

func TestClaimsOfTheLocalClassGetADirectoryAndGiveItBack(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		s := &storage{}
		c.Start(volume.New(c.Deps, s))
		c.Settle()
		x := controllertest.Create(c, claim("data", volume.ClassName, "1Gi"))
		c.Settle()
		if got, want := show(c), "data=Bound(made) made=Bound"; got != want {
			t.Fatalf("%s; want %s", got, want)
		}
		x = controllertest.Get(c, x)
		pv := store.List[*corev1.PersistentVolume](c.Store, kinds.PersistentVolumes, "")[0]
		if pv.Spec.HostPath.Path != "/data/"+pv.Name || pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "n1" || pv.Spec.ClaimRef.UID != x.UID {
			t.Errorf("the volume is %+v; want a directory on n1 for the claim", pv.Spec)
		}
		if got := x.Status.Capacity[corev1.ResourceStorage]; got.String() != "1Gi" || len(x.Status.AccessModes) != 1 {
			t.Errorf("the claim's status is %+v; want 1Gi, ReadWriteOnce", x.Status)
		}
		pod := controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: corev1.PodSpec{NodeName: "n1", Volumes: []corev1.Volume{
			{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
		}}})
		c.Delete(x, "")
		c.Settle()
		if got, want := show(c), "data=Bound(made) made=Bound"; got != want {
			t.Errorf("while a pod uses it: %s; want %s", got, want)
		}
		s.set(errors.New("device is busy"))
		controllertest.EditStatus(c, pod, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		c.Settle()
		if got, want := show(c), "made=Failed"; got != want {
			t.Errorf("when its data cannot be removed: %s; want %s", got, want)
		}
		if got, want := c.Events(pv.Name), "VolumeFailedDelete: device is busy"; !strings.HasPrefix(got, want) {
			t.Errorf("events = %s; want %s", got, want)
		}
		s.set(nil)
		c.Sleep(10 * time.Minute)
		if got, removed := show(c), s.gone(); got != "" || len(removed) != 1 || removed[0] != pv.Name {
			t.Errorf("afterwards: %q, removed %v; want nothing left and %s removed", got, removed, pv.Name)
		}
	})
}

func TestClaimsAreBoundToVolumesThatExist(t *testing.T) {
	reserved := disk("reserved", "", "9Gi")
	reserved.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "shop", Name: "data"}
	chosen := claim("data", "", "1Gi")
	chosen.Spec.VolumeName = "large"
	for _, tt := range []struct {
		name    string
		volumes []*corev1.PersistentVolume
		claim   *corev1.PersistentVolumeClaim
		want    string
		event   string
	}{
		{"the smallest that will do", []*corev1.PersistentVolume{disk("large", "", "9Gi"), disk("small", "", "2Gi"), disk("tiny", "", "1Mi")}, claim("data", "", "1Gi"),
			"data=Bound(small) large=Available small=Bound tiny=Available", ""},
		{"one of the class", []*corev1.PersistentVolume{disk("a", "", "1Gi"), disk("b", "fast", "2Gi")}, claim("data", "fast", "1Gi"), "data=Bound(b) a=Available b=Bound", ""},
		{"the reserved one", []*corev1.PersistentVolume{disk("a", "", "1Gi"), reserved}, claim("data", "", "1Gi"), "data=Bound(reserved) a=Available reserved=Bound", ""},
		{"the chosen one", []*corev1.PersistentVolume{disk("a", "", "1Gi"), disk("large", "", "9Gi")}, chosen, "data=Bound(large) a=Available large=Bound", ""},
		{"none", nil, claim("data", "", "1Gi"), "data=Pending()", "FailedBinding: no persistent volumes available for this claim and no storage class is set"},
		{"no such class", nil, claim("data", "gold", "1Gi"), "data=Pending()", `ProvisioningFailed: storageclass.storage.k8s.io "gold" not found`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				c.Start(volume.New(c.Deps, nil))
				for _, v := range tt.volumes {
					controllertest.Create(c, v)
				}
				c.Settle()
				controllertest.Create(c, tt.claim)
				c.Settle()
				if got := show(c); got != tt.want {
					t.Errorf("%s; want %s", got, tt.want)
				}
				if got := c.Events("data"); got != tt.event {
					t.Errorf("events = %s; want %s", got, tt.event)
				}
			})
		})
	}
}

func TestRetainedVolumesStayReleased(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(volume.New(c.Deps, nil))
		controllertest.Create(c, disk("a", "", "1Gi"))
		c.Settle()
		x := controllertest.Create(c, claim("data", "", "1Gi"))
		c.Settle()
		c.Delete(x, "")
		c.Settle()
		controllertest.Create(c, claim("data", "", "1Gi"))
		c.Settle()
		if got, want := show(c), "data=Pending() a=Released"; got != want {
			t.Errorf("%s; want %s: a new claim of that name is not the old one", got, want)
		}
	})
}

func TestDirectoryRemovesOnlyWhatItMade(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "kept")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := volume.Directory{Root: root, Node: "n1"}
	path, node := d.Path("pvc-1")
	if path != filepath.Join(root, "pvc-1") || node != "n1" {
		t.Errorf("Path() = %s on %s", path, node)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	deep := path
	for range 600 {
		deep += "/d"
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	fewDescriptors(t, 200) // a workload may nest directories deeper than there are descriptors
	for _, bad := range []string{"..", "../pvc-1", "pvc-1/link", "disk", ""} {
		if err := d.Remove(t.Context(), bad); err == nil {
			t.Errorf("Remove(%q) succeeded; want an error", bad)
		}
	}
	for range 2 {
		if err := d.Remove(t.Context(), "pvc-1"); err != nil {
			t.Errorf("Remove() = %v", err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a file outside of the root is gone: %v", err)
	}
}

// fewDescriptors leaves the test that many more than are open.
func fewDescriptors(t *testing.T, more int) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = uint64(len(open) + more)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
}
