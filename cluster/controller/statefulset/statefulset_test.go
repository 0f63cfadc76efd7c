package statefulset_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/garbage"
	"slipway.dev/slipway/cluster/controller/statefulset"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func db(replicas int32, change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	labels := map[string]string{"app": "db"}
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: labels},
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy:      appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32)}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db:1"}}},
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// show is each pod with its image, "*" when it is ready and "-" when it is being deleted.
func show(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		mark := ""
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				mark = "*"
			}
		}
		if p.DeletionTimestamp != nil {
			mark = "-"
		}
		out = append(out, p.Name+"="+p.Spec.Containers[0].Image+mark)
	}
	return strings.Join(out, " ")
}

func claims(c *controllertest.Cluster) string {
	var out []string
	for _, p := range store.List[*corev1.PersistentVolumeClaim](c.Store, kinds.PersistentVolumeClaims, "shop") {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

func start(c *controllertest.Cluster) {
	c.Start(statefulset.New(c.Deps), garbage.New(c.Deps, kinds.All()))
	c.StartKubelet(&controllertest.Kubelet{Bind: "n1", ReadyAfter: 10 * time.Second, StopAfter: 10 * time.Second})
}

func image(name string) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = name }
}

func TestPodsComeAndGoInOrder(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		s := controllertest.Create(c, db(3))
		for _, want := range []string{"db-0=db:1", "db-0=db:1* db-1=db:1", "db-0=db:1* db-1=db:1* db-2=db:1", "db-0=db:1* db-1=db:1* db-2=db:1*"} {
			c.Settle()
			if got := show(c); got != want {
				t.Errorf("pods = %s; want %s", got, want)
			}
			c.Sleep(10 * time.Second)
		}
		p := c.Pods("shop")[1]
		if p.Spec.Hostname != "db-1" || p.Spec.Subdomain != "db" || p.Labels["apps.kubernetes.io/pod-index"] != "1" || p.Labels["statefulset.kubernetes.io/pod-name"] != "db-1" ||
			p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-db-1" {
			t.Errorf("pod db-1 has host name %s.%s, labels %v and volumes %v", p.Spec.Hostname, p.Spec.Subdomain, p.Labels, p.Spec.Volumes)
		}
		if got := claims(c); got != "data-db-0 data-db-1 data-db-2" {
			t.Errorf("claims = %s; want one for each pod", got)
		}
		st := controllertest.Get(c, s).Status
		if st.Replicas != 3 || st.ReadyReplicas != 3 || st.CurrentReplicas != 3 || st.UpdatedReplicas != 3 || st.AvailableReplicas != 3 || st.CurrentRevision != st.UpdateRevision || st.ObservedGeneration != 1 {
			t.Errorf("status = %+v; want 3 of everything at one revision", st)
		}
		if got, want := c.Events("db"), "SuccessfulCreate: create Claim data-db-0 Pod db-0 in StatefulSet db success\nSuccessfulCreate: create Pod db-0 in StatefulSet db successful"; !strings.HasPrefix(got, want) {
			t.Errorf("events = %s; want to begin with %s", got, want)
		}
		controllertest.Edit(c, s, func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
		c.Sleep(5 * time.Second)
		if got, want := show(c), "db-0=db:1* db-1=db:1* db-2=db:1-"; got != want {
			t.Errorf("while scaling down, pods = %s; want %s", got, want)
		}
		c.Sleep(20 * time.Second)
		if got, want := show(c), "db-0=db:1*"; got != want {
			t.Errorf("scaled down, pods = %s; want %s", got, want)
		}
		if got := claims(c); got != "data-db-0 data-db-1 data-db-2" {
			t.Errorf("claims = %s; want all of them kept", got)
		}
	})
}

func TestParallelPodsDoNotWait(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		s := controllertest.Create(c, db(3, func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }))
		c.Settle()
		if got, want := show(c), "db-0=db:1 db-1=db:1 db-2=db:1"; got != want {
			t.Errorf("pods = %s; want %s", got, want)
		}
		c.Sleep(10 * time.Second)
		controllertest.Edit(c, s, func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 0 })
		c.Settle()
		if got, want := show(c), "db-0=db:1- db-1=db:1- db-2=db:1-"; got != want {
			t.Errorf("scaling down, pods = %s; want %s", got, want)
		}
	})
}

func TestRollingUpdateGoesDownwardsToThePartition(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		s := controllertest.Create(c, db(3))
		c.Sleep(time.Minute)
		two := int32(2)
		controllertest.Edit(c, s, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate.Partition = &two
			image("db:2")(s)
		})
		c.Sleep(5 * time.Second)
		if got, want := show(c), "db-0=db:1* db-1=db:1* db-2=db:1-"; got != want {
			t.Errorf("pods = %s; want %s", got, want)
		}
		c.Sleep(time.Minute)
		if got, want := show(c), "db-0=db:1* db-1=db:1* db-2=db:2*"; got != want {
			t.Errorf("a canary: pods = %s; want %s", got, want)
		}
		c.Delete(c.Pods("shop")[0], "")
		c.Sleep(time.Minute)
		if got, want := show(c), "db-0=db:1* db-1=db:1* db-2=db:2*"; got != want {
			t.Errorf("a pod below the partition comes back as %s; want %s", got, want)
		}
		st := controllertest.Get(c, s).Status
		if st.CurrentRevision == st.UpdateRevision || st.CurrentReplicas != 2 || st.UpdatedReplicas != 1 {
			t.Errorf("status = %+v; want two of the current and one of the new revision", st)
		}
		controllertest.Edit(c, s, func(s *appsv1.StatefulSet) { *s.Spec.UpdateStrategy.RollingUpdate.Partition = 0 })
		c.Sleep(2 * time.Minute)
		st = controllertest.Get(c, s).Status
		if got, want := show(c), "db-0=db:2* db-1=db:2* db-2=db:2*"; got != want || st.CurrentRevision != st.UpdateRevision {
			t.Errorf("pods = %s, status %+v; want %s and one revision", got, st, want)
		}
		newest := st.UpdateRevision
		// kubectl rollout undo: the first template again.
		controllertest.Edit(c, s, image("db:1"))
		c.Sleep(2 * time.Minute)
		st = controllertest.Get(c, s).Status
		revisions := store.List[*appsv1.ControllerRevision](c.Store, kinds.ControllerRevisions, "shop")
		if len(revisions) != 2 || st.CurrentRevision == newest {
			t.Errorf("%d revisions, current %s; want the first of two to be current again", len(revisions), st.CurrentRevision)
		}
		for _, r := range revisions {
			if r.Name == st.CurrentRevision && r.Revision != 3 {
				t.Errorf("the revision rolled back to has number %d; want 3", r.Revision)
			}
			if !strings.Contains(string(r.Data.Raw), `"$patch":"replace"`) {
				t.Errorf("revision %s holds %s; want a patch that kubectl can apply", r.Name, r.Data.Raw)
			}
		}
	})
}

func TestFailedPodsAreReplacedAndOnDeleteWaits(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		s := controllertest.Create(c, db(1, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}))
		c.Sleep(time.Minute)
		controllertest.Edit(c, s, image("db:2"))
		c.Sleep(time.Minute)
		if got, want := show(c), "db-0=db:1*"; got != want {
			t.Errorf("pods = %s; want %s until it is deleted", got, want)
		}
		controllertest.EditStatus(c, c.Pods("shop")[0], func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		c.Sleep(time.Minute)
		if got, want := show(c), "db-0=db:2*"; got != want {
			t.Errorf("pods = %s; want %s", got, want)
		}
	})
}

func TestClaimsAreKeptOrDeletedAsAsked(t *testing.T) {
	for _, tt := range []struct {
		whenScaled, whenDeleted appsv1.PersistentVolumeClaimRetentionPolicyType
		scaled, deleted         string
	}{
		{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, "data-db-0 data-db-1", "data-db-0 data-db-1"},
		{appsv1.DeletePersistentVolumeClaimRetentionPolicyType, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, "data-db-0", "data-db-0"},
		{appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType, "data-db-0 data-db-1", ""},
	} {
		t.Run(fmt.Sprint(tt.whenScaled, " ", tt.whenDeleted), func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c)
				s := controllertest.Create(c, db(2, func(s *appsv1.StatefulSet) {
					s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: tt.whenScaled, WhenDeleted: tt.whenDeleted}
				}))
				c.Sleep(time.Minute)
				controllertest.Edit(c, s, func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
				c.Sleep(time.Minute)
				if got := claims(c); got != tt.scaled {
					t.Errorf("claims after scaling down = %q; want %q", got, tt.scaled)
				}
				c.Delete(s, metav1.DeletePropagationBackground)
				c.Sleep(time.Minute)
				if got := claims(c); got != tt.deleted {
					t.Errorf("claims after deleting the set = %q; want %q", got, tt.deleted)
				}
			})
		})
	}
}

// slower finds that somebody was quicker with a claim, so many times.
type slower struct {
	store.Writer
	conflicts *int
}

func (w slower) As(string) store.Writer { return w }

func (w slower) Update(ctx context.Context, o store.Object) (store.Object, error) {
	if _, claim := o.(*corev1.PersistentVolumeClaim); claim && *w.conflicts > 0 {
		*w.conflicts--
		return nil, apierrors.NewConflict(kinds.PersistentVolumeClaims, o.GetName(), errors.New("somebody was quicker"))
	}
	return w.Writer.Update(ctx, o)
}

// TestClaimsOfPodsThatGoAtOnce: a pod without a node is gone when its deletion returns, and nobody would look at its claim again.
func TestClaimsOfPodsThatGoAtOnce(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		conflicts, deps := 0, c.Deps
		deps.Writer = slower{c.Writer, &conflicts}
		c.Start(statefulset.New(deps), garbage.New(c.Deps, kinds.All()))
		s := controllertest.Create(c, db(2, func(s *appsv1.StatefulSet) {
			s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
				WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType}
		}))
		c.Settle()
		conflicts = 1
		controllertest.Edit(c, s, func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 1 })
		c.Sleep(time.Minute)
		if got, want := show(c)+", "+claims(c), "db-0=db:1, data-db-0"; got != want {
			t.Errorf("left are %s; want %s", got, want)
		}
	})
}

// refusing lets nobody create a certain pod.
type refusing struct {
	store.Writer
	pod string
}

func (w refusing) As(string) store.Writer { return w }

func (w refusing) Create(ctx context.Context, o store.Object) (store.Object, error) {
	if _, pod := o.(*corev1.Pod); pod && o.GetName() == w.pod {
		return nil, apierrors.NewForbidden(kinds.Pods, w.pod, errors.New("exceeded quota"))
	}
	return w.Writer.Create(ctx, o)
}

// Pods that could not be created are not counted.
func TestStatusCountsWhatWasCreated(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		deps := c.Deps
		deps.Writer = refusing{c.Writer, "db-1"}
		c.Start(statefulset.New(deps))
		s := controllertest.Create(c, db(3, func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }))
		c.Sleep(time.Minute)
		want := len(c.Pods("shop"))
		if st := controllertest.Get(c, s).Status; want == 0 || int(st.Replicas) != want || int(st.CurrentReplicas) != want || int(st.UpdatedReplicas) != want {
			t.Errorf("there are %s and status = %+v; want the first counted, and not the refused one", show(c), st)
		}
	})
}
