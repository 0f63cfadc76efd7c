package node

import (
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	resourcehelper "k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// facts are what a pod can ask to know about itself beyond its own object.
type facts struct {
	node   *corev1.Node
	hostIP string
	podIP  string
	reader store.Reader
}

// environment is the container's environment in the order of its spec: service links, envFrom,
// then env, where a later name replaces an earlier one. lookup has every variable, for $(NAME).
func (f facts) environment(pod *corev1.Pod, c *corev1.Container) ([]string, map[string]string, error) {
	values := map[string]string{}
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		f.serviceLinks(pod.Namespace, values)
	}
	for i := range c.EnvFrom {
		if err := f.envFrom(pod, &c.EnvFrom[i], values); err != nil {
			return nil, nil, err
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		value, set, err := f.value(pod, c, e, values)
		if err != nil {
			return nil, nil, err
		}
		if set {
			values[e.Name] = value
		}
	}
	env := make([]string, 0, len(values))
	for name, value := range values {
		env = append(env, name+"="+value)
	}
	sort.Strings(env)
	return env, values, nil
}

func (f facts) envFrom(pod *corev1.Pod, from *corev1.EnvFromSource, values map[string]string) error {
	add := func(key, value string) {
		// Names that no environment could hold are left out, as the kubelet does. A shell may hold less: "data-1"
		// is a variable for programs only.
		if name := from.Prefix + key; len(validation.IsRelaxedEnvVarName(name)) == 0 {
			values[name] = value
		}
	}
	switch {
	case from.ConfigMapRef != nil:
		cm, ok := store.Get[*corev1.ConfigMap](f.reader, kinds.ConfigMaps, pod.Namespace, from.ConfigMapRef.Name)
		if !ok && !optional(from.ConfigMapRef.Optional) {
			return fmt.Errorf("configmap %q not found", from.ConfigMapRef.Name)
		}
		if ok {
			for k, v := range cm.Data {
				add(k, v)
			}
		}
	case from.SecretRef != nil:
		s, ok := store.Get[*corev1.Secret](f.reader, kinds.Secrets, pod.Namespace, from.SecretRef.Name)
		if !ok && !optional(from.SecretRef.Optional) {
			return fmt.Errorf("secret %q not found", from.SecretRef.Name)
		}
		if ok {
			for k, v := range s.Data {
				add(k, string(v))
			}
		}
	}
	return nil
}

func optional(o *bool) bool { return o != nil && *o }

// value is one variable's value; set is false where an optional source is absent.
func (f facts) value(pod *corev1.Pod, c *corev1.Container, e *corev1.EnvVar, values map[string]string) (v string, set bool, err error) {
	from := e.ValueFrom
	switch {
	case from == nil:
		return expansion.Expand(e.Value, expansion.MappingFuncFor(values)), true, nil
	case from.FieldRef != nil:
		v, err = f.field(pod, from.FieldRef.FieldPath)
		return v, true, err
	case from.ResourceFieldRef != nil:
		v, err = f.resource(pod, c, from.ResourceFieldRef)
		return v, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, ok := store.Get[*corev1.ConfigMap](f.reader, kinds.ConfigMaps, pod.Namespace, ref.Name)
		if !ok {
			return "", false, missing(ref.Optional, "configmap %q not found", ref.Name)
		}
		if v, ok = cm.Data[ref.Key]; !ok {
			return "", false, missing(ref.Optional, "couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return v, true, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, ok := store.Get[*corev1.Secret](f.reader, kinds.Secrets, pod.Namespace, ref.Name)
		if !ok {
			return "", false, missing(ref.Optional, "secret %q not found", ref.Name)
		}
		raw, ok := s.Data[ref.Key]
		if !ok {
			return "", false, missing(ref.Optional, "couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return string(raw), true, nil
	}
	return "", false, fmt.Errorf("environment variable %q: its source is not supported by this node", e.Name)
}

func missing(opt *bool, format string, args ...any) error {
	if optional(opt) {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// field is a downward API field.
func (f facts) field(pod *corev1.Pod, path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return f.hostIP, nil
	case "status.podIP", "status.podIPs":
		return f.podIP, nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// resource is a downward API resource; limits that are not set are the node's.
func (f facts) resource(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	name := ref.ContainerName
	if name == "" {
		return resourcehelper.ExtractContainerResourceValue(ref, withNodeLimits(c, f.node))
	}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return resourcehelper.ExtractContainerResourceValue(ref, withNodeLimits(&list[i], f.node))
			}
		}
	}
	return "", fmt.Errorf("container %q of a resourceFieldRef not found", name)
}

func withNodeLimits(c *corev1.Container, node *corev1.Node) *corev1.Container {
	if node == nil {
		return c
	}
	c = c.DeepCopy()
	resourcehelper.MergeContainerResourceLimits(c, node.Status.Allocatable)
	return c
}

// serviceLinks are Docker-links-style variables of every service of the namespace, and of
// kubernetes in default.
func (f facts) serviceLinks(namespace string, values map[string]string) {
	link := func(s *corev1.Service) {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			return
		}
		prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
		values[prefix+"_SERVICE_HOST"] = s.Spec.ClusterIP
		values[prefix+"_SERVICE_PORT"] = fmt.Sprint(s.Spec.Ports[0].Port)
		for i, p := range s.Spec.Ports {
			proto := string(p.Protocol)
			if p.Name != "" {
				values[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = fmt.Sprint(p.Port)
			}
			url := fmt.Sprintf("%s://%s:%d", strings.ToLower(proto), s.Spec.ClusterIP, p.Port)
			if i == 0 {
				values[prefix+"_PORT"] = url
			}
			base := fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Port, strings.ToUpper(proto))
			values[base] = url
			values[base+"_PROTO"] = strings.ToLower(proto)
			values[base+"_PORT"] = fmt.Sprint(p.Port)
			values[base+"_ADDR"] = s.Spec.ClusterIP
		}
	}
	if namespace != metaDefault {
		if s, ok := store.Get[*corev1.Service](f.reader, kinds.Services, metaDefault, "kubernetes"); ok {
			link(s)
		}
	}
	for _, s := range store.List[*corev1.Service](f.reader, kinds.Services, namespace) {
		link(s)
	}
}

const metaDefault = "default"

// expand replaces $(NAME) in command and args.
func expand(words []string, values map[string]string) []string {
	if words == nil {
		return nil
	}
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = expansion.Expand(w, expansion.MappingFuncFor(values))
	}
	return out
}
