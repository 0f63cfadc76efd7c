// Package volume binds claims to volumes, makes the volumes that claims of its own storage
// class ask for, and removes what has been released.
//
// A made volume is a directory of the machine below one root, pinned to that machine's
// node. Claims that pods still use are protected from deletion by a finalizer. match and
// the phases are pure; the directory itself is somebody else's: see Storage.
package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "persistent-volume-binder"
	// Provisioner is the name by which storage classes ask for this package's volumes.
	Provisioner = "slipway.dev/local"
	// ClassName is the storage class that a cluster has by default.
	ClassName = "local"

	defaultClass    = "storageclass.kubernetes.io/is-default-class"
	protection      = "kubernetes.io/pvc-protection"
	bindCompleted   = "pv.kubernetes.io/bind-completed"
	boundByUs       = "pv.kubernetes.io/bound-by-controller"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	askedOf         = "volume.kubernetes.io/storage-provisioner"
	askedOfBeta     = "volume.beta.kubernetes.io/storage-provisioner"
	betaClass       = "volume.beta.kubernetes.io/storage-class"
	claimPrefix     = "claim|"
	volumePrefix    = "volume|"
	provisionPrefix = "pvc-"
)

// Storage is where made volumes live.
type Storage interface {
	// Path is where the volume of that name is, on the node of that name ("" pins it to none).
	Path(volume string) (path, node string)
	// Remove deletes a volume's data. What is gone already is no error.
	Remove(ctx context.Context, volume string) error
}

// Controller reconciles claims and volumes.
type Controller struct {
	*controller.Loop
	deps    controller.Deps
	admin   store.Writer // makes the default storage class
	storage Storage
	events  *record.Recorder
}

// New makes the controller; storage nil makes no volumes, and only binds those there are.
func New(d controller.Deps, storage Storage) *Controller {
	c := &Controller{deps: d.For(name), admin: d.Writer, storage: storage}
	c.events = c.deps.Recorder("persistentvolume-controller")
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.PersistentVolumeClaims, Keys: c.claimEvent},
			{Resource: kinds.PersistentVolumes, Keys: c.volumeEvent},
			{Resource: kinds.StorageClasses, Keys: func(store.Event) []string { return c.pending() }},
			{Resource: kinds.Pods, Keys: podEvent},
		},
	}
	return c
}

// Run first sees to it that there is a default storage class.
func (c *Controller) Run(ctx context.Context) error {
	if c.storage != nil {
		if err := c.ensureClass(ctx); err != nil {
			c.deps.Log.Warn("the default storage class could not be created", "class", ClassName, "error", err)
		}
	}
	return c.Loop.Run(ctx)
}

func (c *Controller) ensureClass(ctx context.Context) error {
	if _, ok := c.deps.Reader.Snapshot(kinds.StorageClasses).Get("", ClassName); ok {
		return nil
	}
	reclaim, mode := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	_, err := c.admin.Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{defaultClass: "true"}},
		Provisioner: Provisioner, ReclaimPolicy: &reclaim, VolumeBindingMode: &mode,
	})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (c *Controller) claimEvent(e store.Event) []string {
	if e.Type == store.Modified && onlyStatus(e) {
		return nil // our own writing: looking again would tell the user everything twice
	}
	keys := []string{claimPrefix + store.KeyOf(e.Object)}
	if v := e.Object.(*corev1.PersistentVolumeClaim).Spec.VolumeName; v != "" {
		keys = append(keys, volumePrefix+v)
	}
	return keys
}

func onlyStatus(e store.Event) bool {
	a, ok := e.Prev.(*corev1.PersistentVolumeClaim)
	b := e.Object.(*corev1.PersistentVolumeClaim)
	return ok && equality.Semantic.DeepEqual(a.Spec, b.Spec) && maps.Equal(a.Annotations, b.Annotations) && maps.Equal(a.Labels, b.Labels) &&
		slices.Equal(a.Finalizers, b.Finalizers) && (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
}

func (c *Controller) volumeEvent(e store.Event) []string {
	pv := e.Object.(*corev1.PersistentVolume)
	keys := []string{volumePrefix + pv.Name}
	if ref := pv.Spec.ClaimRef; ref != nil {
		return append(keys, claimPrefix+store.Key(ref.Namespace, ref.Name))
	}
	return append(keys, c.pending()...) // any of those that wait may get it
}

// pending are the claims that have no volume yet.
func (c *Controller) pending() []string {
	var keys []string
	for o := range c.deps.Reader.Snapshot(kinds.PersistentVolumeClaims).All("") {
		if o.(*corev1.PersistentVolumeClaim).Spec.VolumeName == "" {
			keys = append(keys, claimPrefix+store.KeyOf(o))
		}
	}
	return keys
}

// podEvent wakes claims when a pod begins or ceases to use them.
func podEvent(e store.Event) []string {
	pod := e.Object.(*corev1.Pod)
	if e.Type == store.Modified && !ended(pod) {
		return nil
	}
	var keys []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			keys = append(keys, claimPrefix+store.Key(pod.Namespace, v.PersistentVolumeClaim.ClaimName))
		case v.Ephemeral != nil:
			keys = append(keys, claimPrefix+store.Key(pod.Namespace, pod.Name+"-"+v.Name))
		}
	}
	return keys
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if v, ok := strings.CutPrefix(key, volumePrefix); ok {
		pv, ok := store.Get[*corev1.PersistentVolume](c.deps.Reader, kinds.PersistentVolumes, "", v)
		if !ok {
			return 0, nil
		}
		return 0, c.syncVolume(ctx, pv)
	}
	ns, n := controller.SplitKey(strings.TrimPrefix(key, claimPrefix))
	claim, ok := store.Get[*corev1.PersistentVolumeClaim](c.deps.Reader, kinds.PersistentVolumeClaims, ns, n)
	if !ok {
		return 0, nil
	}
	if claim.DeletionTimestamp != nil {
		return 0, c.unprotect(ctx, claim)
	}
	if claim.Annotations[bindCompleted] != "" {
		return 0, c.checkBound(ctx, claim)
	}
	return 0, c.bindOrMake(ctx, claim)
}

// unprotect lets a deleted claim go once no pod uses it.
func (c *Controller) unprotect(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if !slices.Contains(claim.Finalizers, protection) || c.used(claim) {
		return nil
	}
	next := store.Copy(claim)
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == protection })
	_, err := c.deps.Writer.Update(ctx, next)
	return ignoreNotFound(err)
}

func (c *Controller) used(claim *corev1.PersistentVolumeClaim) bool {
	for _, p := range store.Indexed[*corev1.Pod](c.deps.Reader, kinds.Pods, kinds.ByClaim, store.KeyOf(claim)) {
		if !ended(p) && p.Spec.NodeName != "" {
			return true
		}
	}
	return false
}

// checkBound keeps the status of a bound claim, and notices when its volume is lost.
func (c *Controller) checkBound(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	pv, ok := store.Get[*corev1.PersistentVolume](c.deps.Reader, kinds.PersistentVolumes, "", claim.Spec.VolumeName)
	if !ok {
		if claim.Status.Phase != corev1.ClaimLost {
			c.events.Warning(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
		}
		return c.claimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
			*s = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimLost}
		})
	}
	return c.bind(ctx, claim, pv)
}

// bindOrMake finds a volume for a claim, or makes one.
func (c *Controller) bindOrMake(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName != "" { // the user has chosen
		pv, ok := store.Get[*corev1.PersistentVolume](c.deps.Reader, kinds.PersistentVolumes, "", claim.Spec.VolumeName)
		if !ok || (pv.Spec.ClaimRef != nil && !isFor(pv, claim)) {
			return c.wait(ctx, claim)
		}
		return c.bind(ctx, claim, pv)
	}
	volumes := store.List[*corev1.PersistentVolume](c.deps.Reader, kinds.PersistentVolumes, "")
	if pv := match(claim, volumes); pv != nil {
		return c.bind(ctx, claim, pv)
	}
	return c.makeFor(ctx, claim)
}

func (c *Controller) makeFor(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	className := classOf(claim)
	if className == "" {
		c.events.Normal(claim, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
		return c.wait(ctx, claim)
	}
	class, ok := store.Get[*storagev1.StorageClass](c.deps.Reader, kinds.StorageClasses, "", className)
	if !ok {
		c.events.Warning(claim, "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", className)
		return c.wait(ctx, claim)
	}
	late := class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
	if late && len(c.deps.Reader.Snapshot(kinds.Pods).Index(kinds.ByClaim, store.KeyOf(claim))) == 0 {
		c.events.Normal(claim, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
		return c.wait(ctx, claim)
	}
	if class.Provisioner != Provisioner || c.storage == nil {
		c.events.Normal(claim, "ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)
		return c.wait(ctx, claim)
	}
	if problem := unsupported(claim); problem != "" {
		c.events.Warning(claim, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %s", className, problem)
		return c.wait(ctx, claim)
	}
	pv := c.newVolume(claim, class)
	made, err := c.deps.Writer.Create(ctx, pv)
	if apierrors.IsAlreadyExists(err) {
		return nil // its event brings the claim back
	}
	if err != nil {
		c.events.Warning(claim, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", className, err)
		return fmt.Errorf("create volume %q: %w", pv.Name, err)
	}
	c.events.Normal(claim, "ProvisioningSucceeded", "Successfully provisioned volume %s", pv.Name)
	return c.bind(ctx, claim, made.(*corev1.PersistentVolume))
}

// unsupported says what a directory of the machine cannot be.
func unsupported(claim *corev1.PersistentVolumeClaim) string {
	switch {
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return "the local storage class has no block volumes: use volumeMode Filesystem"
	case claim.Spec.Selector != nil:
		return "claim.Spec.Selector is not supported for dynamic provisioning"
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return "the local storage class cannot fill a volume from a data source"
	}
	return ""
}

func (c *Controller) newVolume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) *corev1.PersistentVolume {
	volume := provisionPrefix + string(claim.UID)
	path, node := c.storage.Path(volume)
	reclaim := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	create, mode := corev1.HostPathDirectoryOrCreate, corev1.PersistentVolumeFilesystem
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: volume, Annotations: map[string]string{provisionedBy: Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: slices.Clone(claim.Spec.AccessModes), PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName: class.Name, VolumeMode: &mode, ClaimRef: refTo(claim),
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &create}},
		},
	}
	if node != "" {
		pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}}
	}
	return pv
}

func refTo(claim *corev1.PersistentVolumeClaim) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
	}
}

// bind makes the claim and the volume name each other, in the order from which every
// interruption can be continued: the volume first.
func (c *Controller) bind(ctx context.Context, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) error {
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		if pv.Spec.ClaimRef != nil && !isFor(pv, claim) {
			return c.wait(ctx, claim)
		}
		next := store.Copy(pv)
		if next.Spec.ClaimRef == nil {
			annotate(next, boundByUs, "yes")
		}
		next.Spec.ClaimRef = refTo(claim)
		done, err := c.deps.Writer.Update(ctx, next)
		if err != nil {
			return fmt.Errorf("bind volume %q: %w", pv.Name, err)
		}
		pv = done.(*corev1.PersistentVolume)
	}
	if err := c.volumeStatus(ctx, pv, corev1.VolumeBound, ""); err != nil {
		return err
	}
	claim, err := c.bindClaim(ctx, claim, pv)
	if err != nil {
		return err
	}
	return c.claimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		s.Phase, s.AccessModes = corev1.ClaimBound, pv.Spec.AccessModes
		s.Capacity = corev1.ResourceList{corev1.ResourceStorage: pv.Spec.Capacity[corev1.ResourceStorage]}
	})
}

func (c *Controller) bindClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	if claim.Spec.VolumeName == pv.Name && claim.Annotations[bindCompleted] != "" && slices.Contains(claim.Finalizers, protection) {
		return claim, nil
	}
	next := store.Copy(claim)
	if next.Spec.VolumeName == "" {
		next.Spec.VolumeName = pv.Name
		annotate(next, boundByUs, "yes")
	}
	annotate(next, bindCompleted, "yes")
	if pv.Annotations[provisionedBy] == Provisioner {
		annotate(next, askedOf, Provisioner)
		annotate(next, askedOfBeta, Provisioner)
	}
	if !slices.Contains(next.Finalizers, protection) {
		next.Finalizers = append(next.Finalizers, protection)
	}
	done, err := c.deps.Writer.Update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("bind claim %q: %w", store.KeyOf(claim), err)
	}
	return done.(*corev1.PersistentVolumeClaim), nil
}

func annotate(o metav1.Object, key, value string) {
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[key] = value
	o.SetAnnotations(a)
}

// wait leaves a claim pending.
func (c *Controller) wait(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	return c.claimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) { s.Phase = corev1.ClaimPending })
}

func (c *Controller) claimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaimStatus)) error {
	next := store.Copy(claim)
	change(&next.Status)
	if equality.Semantic.DeepEqual(next.Status, claim.Status) {
		return nil
	}
	_, err := c.deps.Writer.UpdateStatus(ctx, next)
	return ignoreNotFound(err)
}

func (c *Controller) volumeStatus(ctx context.Context, pv *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	if pv.Status.Phase == phase && pv.Status.Message == message {
		return nil
	}
	next := store.Copy(pv)
	next.Status.Message = message
	if next.Status.Phase != phase {
		next.Status.Phase = phase
		now := metav1.Now().Rfc3339Copy()
		next.Status.LastPhaseTransitionTime = &now
	}
	_, err := c.deps.Writer.UpdateStatus(ctx, next)
	return ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// syncVolume keeps a volume's phase, and reclaims it when its claim has gone.
func (c *Controller) syncVolume(ctx context.Context, pv *corev1.PersistentVolume) error {
	ref := pv.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return c.volumeStatus(ctx, pv, corev1.VolumeAvailable, "")
	}
	claim, ok := store.Get[*corev1.PersistentVolumeClaim](c.deps.Reader, kinds.PersistentVolumeClaims, ref.Namespace, ref.Name)
	if ok && claim.UID == ref.UID {
		return nil // binding them is the claim's matter
	}
	if pv.DeletionTimestamp == nil && pv.Status.Phase != corev1.VolumeReleased && pv.Status.Phase != corev1.VolumeFailed {
		if err := c.volumeStatus(ctx, pv, corev1.VolumeReleased, ""); err != nil {
			return err
		}
		cur, ok := store.Get[*corev1.PersistentVolume](c.deps.Reader, kinds.PersistentVolumes, "", pv.Name)
		if !ok {
			return nil
		}
		pv = cur
	}
	return c.reclaim(ctx, pv)
}

func (c *Controller) reclaim(ctx context.Context, pv *corev1.PersistentVolume) error {
	if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return nil // the data is kept until somebody decides
	}
	if pv.Annotations[provisionedBy] != Provisioner || c.storage == nil {
		return nil // whoever made it deletes it
	}
	if err := c.storage.Remove(ctx, pv.Name); err != nil {
		c.events.Warning(pv, "VolumeFailedDelete", "%v", err)
		if statusErr := c.volumeStatus(ctx, pv, corev1.VolumeFailed, err.Error()); statusErr != nil {
			return statusErr
		}
		return fmt.Errorf("remove the data of volume %q: %w", pv.Name, err)
	}
	err := c.deps.Writer.Delete(ctx, kinds.PersistentVolumes, "", pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pv.UID}})
	return ignoreNotFound(err)
}
