package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage/names"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// abilities refuses pods that ask for what no node of this cluster gives. To run them without it would
// be to promise isolation, or a device, that is not there.
type abilities struct{}

func (abilities) admit(_ context.Context, a admission.Attributes) error {
	pod, ok := podCreated(a)
	if !ok {
		return nil
	}
	spec := &pod.Spec
	ephemeral := slices.IndexFunc(spec.Volumes, func(v core.Volume) bool { return v.Ephemeral != nil })
	var err error
	switch {
	case spec.RuntimeClassName != nil && *spec.RuntimeClassName != "":
		err = fmt.Errorf("pod rejected: RuntimeClass %q not found", *spec.RuntimeClassName) // upstream's words
	case len(spec.ResourceClaims) > 0:
		err = fmt.Errorf("pod rejected: spec.resourceClaims: this cluster has no devices to claim")
	case spec.OS != nil && spec.OS.Name != core.Linux:
		err = fmt.Errorf("pod rejected: spec.os.name: every node of this cluster runs linux, not %s", spec.OS.Name)
	case spec.HostUsers != nil && !*spec.HostUsers:
		err = fmt.Errorf("pod rejected: spec.hostUsers: nodes of this cluster have no user namespaces for pods: leave it out, or set it to true")
	case ephemeral >= 0: // it would wait for a claim that nobody makes
		err = fmt.Errorf("pod rejected: spec.volumes[%d].ephemeral: this cluster makes no claims for pods: make one and name it, or use an emptyDir", ephemeral)
	default:
		return nil
	}
	return admission.NewForbidden(a, err)
}

// serviceAccounts gives every pod an account and, unless it or the account declines, the
// volume with that account's token.
type serviceAccounts struct{ objects store.Reader }

// accountPatience is how long a pod waits for its namespace's default account, which the
// controller makes when it hears of the namespace: "create namespace" and "run" in one script
// must work.
const accountPatience = 2 * time.Second

func (p serviceAccounts) admit(ctx context.Context, a admission.Attributes) error {
	pod, ok := podCreated(a)
	if !ok {
		return nil
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return nil
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = serviceaccount.DefaultServiceAccountName
		pod.Spec.DeprecatedServiceAccount = serviceaccount.DefaultServiceAccountName //nolint:staticcheck // kept alike, as upstream's defaults do
	}
	sa, err := p.account(ctx, a.GetNamespace(), pod.Spec.ServiceAccountName)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.GetNamespace(), pod.Spec.ServiceAccountName, err))
	}
	if automount(sa, pod) {
		mountToken(pod)
	}
	if len(pod.Spec.ImagePullSecrets) == 0 {
		for _, s := range sa.ImagePullSecrets {
			pod.Spec.ImagePullSecrets = append(pod.Spec.ImagePullSecrets, core.LocalObjectReference{Name: s.Name})
		}
	}
	return nil
}

func (p serviceAccounts) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	if sa, ok := store.Get[*corev1.ServiceAccount](p.objects, kinds.ServiceAccounts, namespace, name); ok {
		return sa, nil
	}
	missing := apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccount"}, name)
	if name != serviceaccount.DefaultServiceAccountName {
		return nil, missing
	}
	cursor, err := p.objects.Watch(kinds.ServiceAccounts, 0)
	if err != nil {
		return nil, err
	}
	if o, ok := cursor.Snapshot().Get(namespace, name); ok {
		return o.(*corev1.ServiceAccount), nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, accountPatience, missing)
	defer cancel()
	for {
		events, err := cursor.Next(ctx)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			if sa, ok := e.Object.(*corev1.ServiceAccount); ok && e.Type != store.Deleted && sa.Namespace == namespace && sa.Name == name {
				return sa, nil
			}
		}
	}
}

// account is the service account of that name.
func (s *Server) account(namespace, name string) (*corev1.ServiceAccount, bool) {
	return store.Get[*corev1.ServiceAccount](s.objects, kinds.ServiceAccounts, namespace, name)
}

func automount(sa *corev1.ServiceAccount, pod *core.Pod) bool {
	switch {
	case pod.Spec.AutomountServiceAccountToken != nil:
		return *pod.Spec.AutomountServiceAccountToken
	case sa.AutomountServiceAccountToken != nil:
		return *sa.AutomountServiceAccountToken
	}
	return true
}

// mountToken adds the token's volume, and its mount to every container that has nothing there.
func mountToken(pod *core.Pod) {
	const prefix = serviceaccount.ServiceAccountVolumeName + "-"
	have := slices.IndexFunc(pod.Spec.Volumes, func(v core.Volume) bool { return strings.HasPrefix(v.Name, prefix) })
	name := ""
	if have >= 0 {
		name = pod.Spec.Volumes[have].Name
	} else {
		name = names.SimpleNameGenerator.GenerateName(prefix)
	}
	used := false
	for _, list := range [][]core.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if slices.ContainsFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return m.MountPath == serviceaccount.DefaultAPITokenMountPath }) {
				continue
			}
			c.VolumeMounts = append(c.VolumeMounts, core.VolumeMount{Name: name, ReadOnly: true, MountPath: serviceaccount.DefaultAPITokenMountPath})
			used = true
		}
	}
	if used && have < 0 {
		pod.Spec.Volumes = append(pod.Spec.Volumes, core.Volume{Name: name, VolumeSource: core.VolumeSource{Projected: serviceaccount.TokenVolumeSource()}})
	}
}

// priorities resolves a pod's priority class to its number.
type priorities struct{ objects store.Reader }

func (p priorities) admit(_ context.Context, a admission.Attributes) error {
	pod, ok := podCreated(a)
	if !ok {
		return keepPriority(a)
	}
	class, err := p.class(a, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	pod.Spec.PriorityClassName = class.Name
	if pod.Spec.Priority != nil && *pod.Spec.Priority != class.Value {
		return admission.NewForbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, class.Value))
	}
	value := class.Value
	pod.Spec.Priority = &value
	if class.PreemptionPolicy == nil {
		return nil
	}
	policy := core.PreemptionPolicy(*class.PreemptionPolicy)
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy != policy {
		return admission.NewForbidden(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *pod.Spec.PreemptionPolicy, policy))
	}
	pod.Spec.PreemptionPolicy = &policy
	return nil
}

// keepPriority lets an update leave out what admission had filled in.
func keepPriority(a admission.Attributes) error {
	if a.GetOperation() != admission.Update || a.GetSubresource() != "" || a.GetResource().GroupResource() != podResource {
		return nil
	}
	pod, ok := a.GetObject().(*core.Pod)
	old, okOld := a.GetOldObject().(*core.Pod)
	if !ok || !okOld {
		return nil
	}
	if pod.Spec.Priority == nil {
		pod.Spec.Priority = old.Spec.Priority
	}
	if pod.Spec.PreemptionPolicy == nil {
		pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
	return nil
}

// class is the named priority class, or the default one, or upstream's meaning of none.
func (p priorities) class(a admission.Attributes, name string) (*schedulingv1.PriorityClass, error) {
	if name != "" {
		pc, ok := store.Get[*schedulingv1.PriorityClass](p.objects, kinds.PriorityClasses, "", name)
		if !ok {
			return nil, admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
		}
		return pc, nil
	}
	lower := corev1.PreemptLowerPriority
	best := &schedulingv1.PriorityClass{Value: scheduling.DefaultPriorityWhenNoDefaultClassExists, PreemptionPolicy: &lower}
	found := false
	for _, pc := range store.List[*schedulingv1.PriorityClass](p.objects, kinds.PriorityClasses, "") {
		if pc.GlobalDefault && (!found || pc.Value < best.Value) {
			best, found = pc, true
		}
	}
	return best, nil
}

// priorityClasses allows one default class.
type priorityClasses struct{ objects store.Reader }

func (p priorityClasses) concerns(a admission.Attributes) bool {
	return a.GetSubresource() == "" && a.GetResource().Group == scheduling.GroupName && a.GetOperation() != admission.Delete
}

func (p priorityClasses) validate(_ context.Context, a admission.Attributes) error {
	pc, ok := a.GetObject().(*scheduling.PriorityClass)
	if !ok || !pc.GlobalDefault {
		return nil
	}
	for _, other := range store.List[*schedulingv1.PriorityClass](p.objects, kinds.PriorityClasses, "") {
		if other.GlobalDefault && other.Name != pc.Name {
			return admission.NewForbidden(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", other.Name))
		}
	}
	return nil
}
