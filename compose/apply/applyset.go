package apply

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// Labels and annotations of the ApplySet specification (KEP-3659).
const (
	labelPartOf    = "applyset.kubernetes.io/part-of"
	labelID        = "applyset.kubernetes.io/id"
	annotationTool = "applyset.kubernetes.io/tooling"
	annotationGKs  = "applyset.kubernetes.io/contains-group-kinds"

	labelManagedBy = "app.kubernetes.io/managed-by"
	labelProject   = "com.docker.compose.project"
	labelService   = "com.docker.compose.service"
	labelName      = "app.kubernetes.io/name"

	parentName = "slipway-project"
)

// setID is the ApplySet's identity, derived from its parent as the specification says.
func setID(namespace string) string {
	sum := sha256.Sum256([]byte(parentName + "." + namespace + ".ConfigMap."))
	return "applyset-" + base64.RawURLEncoding.EncodeToString(sum[:]) + "-v1"
}

// writeParent records the project and the kinds it may have, before its first member exists.
func (c *Cluster) writeParent(ctx context.Context, namespace string, p parent) error {
	names := make([]string, 0, len(kinds))
	for _, k := range kinds {
		names = append(names, k.gk)
	}
	sort.Strings(names)
	object := map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": parentName, "namespace": namespace,
			"labels":      map[string]any{labelID: setID(namespace), labelManagedBy: fieldManager, labelProject: p.project},
			"annotations": map[string]any{annotationTool: "slipway/v1", annotationGKs: strings.Join(names, ",")},
		},
		"data": map[string]any{"project": p.project, "files": strings.Join(p.files, "\n"), "kept": strings.Join(p.kept, "\n")},
	}
	raw, err := (&unstructured.Unstructured{Object: object}).MarshalJSON()
	if err != nil {
		return err
	}
	force := true
	_, err = c.client.Resource(configMapsGVR).Namespace(namespace).Patch(ctx, parentName, types.ApplyPatchType, raw,
		metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	return err
}

// parent is what the cluster knows of a project as a whole; the zero one: nothing, it is new.
type parent struct {
	project string
	files   []string
	kept    []string // services that came from other files
}

func (c *Cluster) readParent(ctx context.Context, namespace string) (parent, error) {
	u, err := c.client.Resource(configMapsGVR).Namespace(namespace).Get(ctx, parentName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return parent{}, nil
	}
	if err != nil {
		return parent{}, fmt.Errorf("read project %s: %w", namespace, err)
	}
	return parentOf(u), nil
}

func parentOf(u *unstructured.Unstructured) parent {
	data, _, _ := unstructured.NestedStringMap(u.Object, "data")
	p := parent{project: data["project"]}
	words := func(text string) []string { return strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }) }
	p.files, p.kept = words(data["files"]), words(data["kept"])
	return p
}

// refuse is the error for a namespace that is another project's: their names may differ and their namespace not.
func (p parent) refuse(namespace, project string) error {
	if p.project == "" || project == "" || p.project == project {
		return nil
	}
	return fmt.Errorf("project %s: namespace %s is project %s's, since names of namespaces have no _: choose another name with -p", project, namespace, p.project)
}

// Refuse is an error for a namespace that another project has: whatever is done there would be done to that one.
func (c *Cluster) Refuse(ctx context.Context, namespace, project string) error {
	have, err := c.readParent(ctx, namespace)
	if err != nil {
		return err
	}
	return have.refuse(namespace, project)
}

// shares tells whether a project was brought up from one of the files, or has not been brought up.
func (p parent) shares(files []string) bool {
	return len(p.files) == 0 || len(files) == 0 || slices.ContainsFunc(files, func(f string) bool { return slices.Contains(p.files, f) })
}

// members lists what belongs to the project, by kind.
func (c *Cluster) members(ctx context.Context, namespace string) (map[string][]unstructured.Unstructured, error) {
	lists := make([][]unstructured.Unstructured, len(kinds))
	errs := make([]error, len(kinds))
	var tasks sync.WaitGroup
	for i, k := range kinds {
		tasks.Go(func() {
			list, err := c.in(k, namespace).List(ctx, metav1.ListOptions{LabelSelector: labelPartOf + "=" + setID(namespace)})
			if !k.namespaced && !c.Slipway && apierrors.IsForbidden(err) {
				return // who is let into a namespace alone has none of these
			}
			if err != nil {
				errs[i] = fmt.Errorf("list %s: %w", k.gvr.Resource, err)
				return
			}
			lists[i] = list.Items
		})
	}
	tasks.Wait()
	out := map[string][]unstructured.Unstructured{}
	for i, k := range kinds {
		out[k.gk] = lists[i]
	}
	return out, errors.Join(errs...)
}

// prune deletes the members that orphan says so of; claims and volumes stay, as they hold data.
func (c *Cluster) prune(ctx context.Context, members map[string][]unstructured.Unstructured, orphan func(key, service string) bool, p Progress) (n int, err error) {
	for _, k := range kinds {
		if k.gvr == claimsGVR || !k.namespaced {
			continue
		}
		for i := range members[k.gk] {
			m := &members[k.gk][i]
			service := m.GetLabels()[labelService]
			if !orphan(keyOf(m), service) {
				continue
			}
			if err := c.remove(ctx, k, m.GetNamespace(), m.GetName()); err != nil {
				return n, err
			}
			n++
			if k.gvr == deploymentsGVR || k.gvr == jobsGVR {
				p.Say("", fmt.Sprintf("service %s removed: it is no longer in the file", service))
			}
		}
	}
	return n, nil
}

func (c *Cluster) remove(ctx context.Context, k kind, namespace, name string) error {
	background := metav1.DeletePropagationBackground
	err := c.in(k, namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %s: %w", k.gvr.Resource, name, err)
	}
	return nil
}
