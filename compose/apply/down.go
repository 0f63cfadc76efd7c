package apply

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const mergePatch = types.MergePatchType

// DownOptions refine Down.
type DownOptions struct {
	Volumes  bool   // claims, and with them their data, and the namespace too
	Grace    *int64 // seconds that pods have to end; nil: as the file says
	Progress Progress
}

// Down deletes what belongs to the project. Workloads go first and their pods are waited for, so that
// policies hold as long as anything runs. Claims stay unless asked for.
func (c *Cluster) Down(ctx context.Context, namespace string, o DownOptions) error {
	all, err := c.members(ctx, namespace)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.track(ctx, namespace)
	if err != nil {
		return err
	}
	defer func() { cancel(); t.tasks.Wait() }()
	services := map[string]bool{}
	for _, k := range kinds[:2] {
		for _, m := range all[k.gk] {
			services[m.GetLabels()[labelName]] = true
			o.Progress.State(m.GetLabels()[labelService], "stopping", 0, 0)
			if err := c.remove(ctx, k, namespace, m.GetName()); err != nil {
				return err
			}
		}
	}
	if err := t.hurry(ctx, services, o.Grace); err != nil {
		return err
	}
	if err := t.await(ctx, func() (bool, error) { return t.noPods(services), nil }); err != nil {
		return err
	}
	for _, k := range kinds[:2] {
		for _, m := range all[k.gk] {
			o.Progress.State(m.GetLabels()[labelService], "removed", 0, 0)
		}
	}
	for _, k := range kinds[2:] {
		if !o.Volumes && (k.gvr == claimsGVR || !k.namespaced) {
			continue
		}
		for _, m := range all[k.gk] {
			if err := c.remove(ctx, k, namespace, m.GetName()); err != nil {
				return err
			}
			if k.gvr == claimsGVR {
				o.Progress.Say("", fmt.Sprintf("volume %s removed", m.GetName()))
			}
		}
	}
	if err := c.remove(ctx, kinds[4], namespace, parentName); err != nil {
		return err
	}
	if !o.Volumes {
		return nil
	}
	return c.removeNamespace(ctx, namespace)
}

// removeNamespace deletes the project's namespace, if Slipway made it.
func (c *Cluster) removeNamespace(ctx context.Context, name string) error {
	ns, err := c.client.Resource(namespacesGVR).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || (err == nil && ns.GetLabels()[labelManagedBy] != fieldManager) {
		return nil
	}
	if err == nil {
		err = c.client.Resource(namespacesGVR).Delete(ctx, name, metav1.DeleteOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return c.awaitGone(ctx, namespacesGVR, "", name)
}

// noPods says whether no pod of the services is left; it is called under the lock.
func (t *tracker) noPods(services map[string]bool) bool {
	for _, p := range t.pods {
		if services[p.Labels[labelName]] {
			return false
		}
	}
	return true
}

// Exists tells whether the project is up, or has left volumes.
func (c *Cluster) Exists(ctx context.Context, namespace string) (bool, error) {
	_, err := c.client.Resource(namespacesGVR).Get(ctx, namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
