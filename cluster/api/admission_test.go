package api

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
)

func create(t *testing.T, i *instance, o store.Object) store.Object {
	t.Helper()
	made, err := i.Client().Create(t.Context(), o)
	if err != nil {
		t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
	return made
}

func TestPodSecurity(t *testing.T) {
	i := start(t)
	create(t, i, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tight", Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}}})
	create(t, i, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "tight"}})
	pod := podOf("a")
	pod.Namespace = "tight"
	pod.Spec.HostNetwork = true
	_, err := i.Client().Create(t.Context(), pod)
	if want := `pods "a" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true), hostPort (container "c" uses hostPort 80)`; err == nil || err.Error() != want {
		t.Errorf("a pod on the host's network: %v; want %s", err, want)
	}
	_, h, _ := i.raw(t, "POST", "/api/v1/namespaces/tight/pods", "", `{"metadata":{"name":"b"},"spec":{"containers":[{"name":"c","image":"i"}]}}`)
	if got := strings.Join(h.Values("Warning"), ";"); !strings.HasPrefix(got, `299 - "would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false`) {
		t.Errorf("warning of an ordinary pod: %s", got)
	}
}

func TestPodsThatAskForWhatNobodyGivesAreRefused(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	gvisor, no := "gvisor", false
	for want, ask := range map[string]func(*corev1.PodSpec){
		`RuntimeClass "gvisor" not found`: func(s *corev1.PodSpec) { s.RuntimeClassName = &gvisor },
		"this cluster has no devices to claim": func(s *corev1.PodSpec) {
			s.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &gvisor}}
		},
		"every node of this cluster runs linux, not windows":     func(s *corev1.PodSpec) { s.OS = &corev1.PodOS{Name: corev1.Windows} },
		"nodes of this cluster have no user namespaces for pods": func(s *corev1.PodSpec) { s.HostUsers = &no },
		"spec.volumes[0].ephemeral: this cluster makes no claims for pods": func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{
				Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1Gi")}}}}}}}}
		},
	} {
		pod := podOf("a")
		for c := range pod.Spec.Containers {
			pod.Spec.Containers[c].Ports = nil
		}
		ask(&pod.Spec)
		if _, err := i.Client().Create(t.Context(), pod); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("a pod was not refused because %s: %v", want, err)
		}
	}
}

func TestPodDefaults(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	create(t, i, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000})
	pod := podOf("a")
	pod.Spec.PriorityClassName = "high"
	got := create(t, i, pod).(*corev1.Pod)
	if got.Spec.Priority == nil || *got.Spec.Priority != 1000 {
		t.Errorf("priority is %v; want 1000", got.Spec.Priority)
	}
	if n := len(got.Spec.Tolerations); n != 2 || *got.Spec.Tolerations[0].TolerationSeconds != 300 {
		t.Errorf("tolerations are %v", got.Spec.Tolerations)
	}
	changed := got.DeepCopy()
	changed.Spec.Tolerations = []corev1.Toleration{{Key: "disk", Operator: corev1.TolerationOpExists}}
	if after, err := i.Client().Update(t.Context(), changed); err != nil || len(after.(*corev1.Pod).Spec.Tolerations) != 3 {
		t.Errorf("an update that replaces the tolerations: %v, %v; want the new one beside the two that were put there", after, err)
	}
	no := false
	pod = podOf("b")
	pod.Spec.AutomountServiceAccountToken = &no
	if got := create(t, i, pod).(*corev1.Pod); len(got.Spec.Volumes) != 0 {
		t.Errorf("a pod that wants no token has volumes %v", got.Spec.Volumes)
	}
	pod = podOf("c")
	wrong := int32(5)
	pod.Spec.Priority = &wrong
	if _, err := i.Client().Create(t.Context(), pod); !apierrors.IsForbidden(err) {
		t.Errorf("a pod that sets its own priority: %v", err)
	}
	_, err := i.Client().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "d1"}, GlobalDefault: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.Client().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "d2"}, GlobalDefault: true})
	if err == nil || !strings.Contains(err.Error(), "PriorityClass d1 is already marked as default. Only one default can exist") {
		t.Errorf("a second default class: %v", err)
	}
}

func TestDefaultStorageClass(t *testing.T) {
	i := start(t)
	create(t, i, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "local", Annotations: map[string]string{defaultClassAnnotation: "true"}}, Provisioner: "slipway.dev/local"})
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default"}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1Gi")}},
	}}
	got := create(t, i, claim).(*corev1.PersistentVolumeClaim)
	if got.Spec.StorageClassName == nil || *got.Spec.StorageClassName != "local" {
		t.Errorf("the claim has class %v; want local", got.Spec.StorageClassName)
	}
}

// A pod may be created right after its namespace: it waits for the account's controller.
func TestPodWaitsForItsAccount(t *testing.T) {
	i := start(t)
	create(t, i, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
	pod := podOf("a")
	pod.Namespace = "new"
	done := make(chan error, 1)
	go func() {
		_, err := i.Client().Create(t.Context(), pod)
		done <- err
	}()
	create(t, i, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "new"}})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEvictionHonoursBudgets(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	for _, n := range []string{"a", "b"} {
		pod := store.Copy(create(t, i, podOf(n)).(*corev1.Pod))
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		if _, err := i.Client().UpdateStatus(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if code, body := i.ask(t, i.http(t), "POST", "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
		`{"metadata":{"name":"one"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"app":"web"}}}}`); code != 201 {
		t.Fatalf("budget: %d %s", code, body)
	}
	evict := func(name string) (int, string) {
		return i.ask(t, i.http(t), "POST", ns+"/pods/"+name+"/eviction", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"`+name+`"}}`)
	}
	if code, body := evict("a"); code != 201 {
		t.Errorf("the first eviction: %d %s", code, body)
	}
	if code, body := evict("b"); code != 429 || body != "Cannot evict pod as it would violate the pod's disruption budget." {
		t.Errorf("the second eviction: %d %s; want 429", code, body)
	}
}
