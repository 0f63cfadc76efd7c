package node

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/image"
)

// prepare makes the pod's sandbox, volumes and images, all at once. When something fails it says in
// an event what, and returns when to try again; zero means that everything is there. ok says whether
// the pod has its place: an image that is missing, or a volume that cannot be brought up to date,
// holds up no container but those that need it.
func (w *worker) prepare(ctx context.Context, pod *corev1.Pod, v view) (wait time.Time, ok bool) {
	w.mu.Lock()
	if w.again {
		w.again, w.retry, w.retryAt = false, 0, time.Time{}
	}
	w.mu.Unlock()
	if time.Now().Before(w.retryAt) {
		return w.retryAt, w.placed()
	}
	ctx, done := w.interruptible(ctx)
	defer done()
	w.mu.Lock()
	w.stale = false
	w.mu.Unlock()

	if !w.imagesPresent(ctx, pod, v) {
		w.report(ctx, pod, decision{}) // a pull takes long enough for people to look
	}
	var tasks sync.WaitGroup
	var boxErr, imageErr error
	tasks.Go(func() { boxErr = w.prepareSandbox(ctx, pod) })
	tasks.Go(func() { imageErr = w.prepareImages(ctx, pod, v) })
	volumeErr := w.prepareVolumes(ctx, pod)
	tasks.Wait()
	if ctx.Err() != nil {
		return time.Now().Add(retryFirst), false // deleted meanwhile: the next step sees it
	}
	warn := func(reason string, err error) {
		w.agent.record.podEvent(pod, "", corev1.EventTypeWarning, reason, "%v", err)
	}
	if boxErr != nil {
		warn("FailedCreatePodSandBox", fmt.Errorf("Failed to create pod sandbox: %w", boxErr))
	}
	if volumeErr != nil {
		warn("FailedMount", volumeErr)
		w.mu.Lock()
		w.stale = true
		w.mu.Unlock()
	}
	if boxErr != nil || imageErr != nil || volumeErr != nil {
		return w.delay(), w.placed()
	}
	w.retry, w.retryAt = 0, time.Time{}
	return time.Time{}, true
}

// placed says whether containers can be started in this pod.
func (w *worker) placed() bool { return w.sandbox != nil && w.paths != nil }

func (w *worker) needsPreparing(pod *corev1.Pod, v view) bool {
	w.mu.Lock()
	stale := w.stale
	w.mu.Unlock()
	if !w.placed() || stale || (!w.refresh.IsZero() && !time.Now().Before(w.refresh)) {
		return true
	}
	return anyContainer(pod, func(c *corev1.Container) bool { return w.lacksImage(pod, c, v) })
}

func (w *worker) lacksImage(pod *corev1.Pod, c *corev1.Container, v view) bool {
	_, ok := w.images[c.Image]
	return !ok && needsImage(pod, c.Name, v[c.Name])
}

func (w *worker) prepareSandbox(ctx context.Context, pod *corev1.Pod) error {
	if w.sandbox != nil {
		return nil
	}
	s, err := w.agent.ensureSandbox(ctx, pod)
	if err == nil {
		w.sandbox = s
	}
	return err
}

// prepareVolumes makes the volumes, or brings them up to date. It runs beside prepareSandbox: no
// volume can hold the pod's address.
func (w *worker) prepareVolumes(ctx context.Context, pod *corev1.Pod) error {
	paths, refresh, err := w.agent.volumes.setUp(ctx, w.agent.facts(), pod)
	if err != nil {
		return err
	}
	w.paths, w.refresh = paths, refresh
	return nil
}

func (a *Agent) facts() facts {
	f := facts{reader: a.Reader, hostIP: a.NodeAddr.String()}
	f.node, _ = store.Get[*corev1.Node](a.Reader, kinds.Nodes, "", a.Name)
	return f
}

// address is the pod's, empty while it has none.
func (w *worker) address() string {
	if w.sandbox == nil {
		return ""
	}
	return w.sandbox.addr.String()
}

func (w *worker) imagesPresent(ctx context.Context, pod *corev1.Pod, v view) bool {
	return !anyContainer(pod, func(c *corev1.Container) bool {
		if !w.lacksImage(pod, c, v) {
			return false
		}
		if c.ImagePullPolicy == corev1.PullAlways {
			return true
		}
		_, err := w.agent.Images.Get(ctx, c.Image)
		return err != nil
	})
}

// prepareImages finds or pulls the image of each container that will need it.
func (w *worker) prepareImages(ctx context.Context, pod *corev1.Pod, v view) (first error) {
	for c := range containersOf(pod) {
		if !w.lacksImage(pod, c, v) {
			continue
		}
		img, err := w.image(ctx, pod, c)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		w.images[c.Image] = img
		delete(w.waiting, c.Name)
	}
	return first
}

// image obeys the pull policy.
func (w *worker) image(ctx context.Context, pod *corev1.Pod, c *corev1.Container) (image.Image, error) {
	a := w.agent
	path := fieldPath(pod, c.Name)
	img, err := a.Images.Get(ctx, c.Image)
	switch {
	case err == nil && c.ImagePullPolicy != corev1.PullAlways:
		a.record.podEvent(pod, path, corev1.EventTypeNormal, "Pulled", "Container image %q already present on machine", c.Image)
		return img, nil
	case err != nil && !errdefs.IsNotFound(err):
		w.waiting[c.Name] = waiting{"ImageInspectError", err.Error()}
		return img, err
	case c.ImagePullPolicy == corev1.PullNever:
		err = fmt.Errorf("Container image %q is not present with pull policy of Never", c.Image)
		w.waiting[c.Name] = waiting{"ErrImageNeverPull", err.Error()}
		a.record.podEvent(pod, path, corev1.EventTypeWarning, "ErrImageNeverPull", "%v", err)
		return img, err
	}
	a.record.podEvent(pod, path, corev1.EventTypeNormal, "Pulling", "Pulling image %q", c.Image)
	began := time.Now()
	if err := a.Pull(ctx, c.Image, w.credentials(pod)); err != nil {
		if ctx.Err() != nil {
			return img, err
		}
		reason := "ErrImagePull"
		message := fmt.Sprintf("failed to pull image %q: %v", c.Image, err)
		a.record.podEvent(pod, path, corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", c.Image, err)
		if w.retry > 0 {
			reason, message = "ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: %v", c.Image, err)
			a.record.podEvent(pod, path, corev1.EventTypeNormal, "BackOff", "Back-off pulling image %q", c.Image)
		}
		w.waiting[c.Name] = waiting{reason, message}
		return img, err
	}
	a.record.podEvent(pod, path, corev1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %s", c.Image, time.Since(began).Round(time.Millisecond))
	return a.Images.Get(ctx, c.Image)
}

// credentials looks a registry up in the pod's and its service account's pull secrets.
func (w *worker) credentials(pod *corev1.Pod) func(host string) (user, password string) {
	refs := pod.Spec.ImagePullSecrets
	if sa, ok := store.Get[*corev1.ServiceAccount](w.agent.Reader, kinds.ServiceAccounts, pod.Namespace, pod.Spec.ServiceAccountName); ok {
		refs = append(refs[:len(refs):len(refs)], sa.ImagePullSecrets...)
	}
	return func(host string) (string, string) {
		for _, ref := range refs {
			s, ok := store.Get[*corev1.Secret](w.agent.Reader, kinds.Secrets, pod.Namespace, ref.Name)
			if !ok {
				continue
			}
			if user, password, ok := registryLogin(s, host); ok {
				return user, password
			}
		}
		return "", ""
	}
}

// registryLogin reads a kubernetes.io/dockerconfigjson secret.
func registryLogin(s *corev1.Secret, host string) (user, password string, ok bool) {
	var config struct {
		Auths map[string]struct{ Username, Password, Auth string }
	}
	if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &config) != nil {
		return "", "", false
	}
	for server, a := range config.Auths {
		name := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
		name, _, _ = strings.Cut(name, "/")
		if name != host && !(host == "registry-1.docker.io" && strings.HasSuffix(name, "docker.io")) {
			continue
		}
		if a.Username == "" && a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				continue
			}
			a.Username, a.Password, _ = strings.Cut(string(raw), ":")
		}
		return a.Username, a.Password, true
	}
	return "", "", false
}

// launch creates and starts the next attempt of one container.
func (w *worker) launch(ctx context.Context, pod *corev1.Pod, name string, v view) error {
	o := v[name]
	c := findContainer(pod, name)
	path := fieldPath(pod, name)
	fail := func(reason string, err error) error {
		if ctx.Err() == nil {
			w.waiting[name] = waiting{reason, err.Error()}
			w.agent.record.podEvent(pod, path, corev1.EventTypeWarning, "Failed", "Error: %v", err)
		}
		return err
	}
	l, err := w.describe(pod, c, v)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	spec, err := l.spec()
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	info, err := w.create(ctx, spec)
	if err != nil {
		if _, e := w.agent.Images.Get(ctx, c.Image); errdefs.IsNotFound(e) {
			delete(w.images, c.Image) // somebody removed it: to be fetched again
		}
		return fail("CreateContainerError", err)
	}
	w.agent.record.podEvent(pod, path, corev1.EventTypeNormal, "Created", "Container created")
	if o.previous != nil {
		if err := w.agent.Containers.Remove(ctx, o.previous.ID, container.RemoveOptions{Force: true, Volumes: true}); err == nil {
			delete(w.messages, o.previous.ID)
		}
	}
	delete(w.waiting, name)
	if err := w.agent.Containers.Start(ctx, info.ID); err != nil {
		// The attempt is on record as one that failed to start; back-off applies to the next. Its id would
		// make each such event another one.
		message := strings.ReplaceAll(err.Error(), fmt.Sprintf("start container %q: ", info.ID), "")
		w.agent.record.podEvent(pod, path, corev1.EventTypeWarning, "Failed", "Error: %s", message)
		w.waiting[name] = waiting{"RunContainerError", message}
		return nil
	}
	w.agent.record.podEvent(pod, path, corev1.EventTypeNormal, "Started", "Container started")
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		w.postStart(ctx, pod, c, info.ID)
	}
	return nil
}

// create makes the container, replacing one of the same attempt that was never started: an agent that
// was killed between the two steps.
func (w *worker) create(ctx context.Context, spec container.Spec) (container.Info, error) {
	info, err := w.agent.Containers.Create(ctx, spec)
	if !errdefs.IsAlreadyExists(err) && !errdefs.IsConflict(err) {
		return info, err
	}
	if err := w.agent.Containers.Remove(ctx, spec.Name, container.RemoveOptions{Force: true, Volumes: true}); err != nil {
		return info, err
	}
	return w.agent.Containers.Create(ctx, spec)
}

// targetOf is the engine container whose processes an ephemeral container asks to see; empty: it does not.
func targetOf(pod *corev1.Pod, c *corev1.Container, v view) (string, error) {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if e.Name != c.Name || e.TargetContainerName == "" {
			continue
		}
		o := v[e.TargetContainerName]
		if !o.running() {
			return "", fmt.Errorf("unable to find target container %q: it does not run", e.TargetContainerName)
		}
		return o.current.ID, nil
	}
	return "", nil
}

// describe collects what the container's spec is made from.
func (w *worker) describe(pod *corev1.Pod, c *corev1.Container, v view) (launch, error) {
	a := w.agent
	f := a.facts()
	f.podIP = w.address()
	o := v[c.Name]
	env, values, err := f.environment(pod, c)
	if err != nil {
		return launch{}, err
	}
	target, err := targetOf(pod, c, v)
	if err != nil {
		return launch{}, err
	}
	l := launch{
		target: target,
		pod:    pod, container: c, epoch: w.sandbox.epoch, env: env, values: values, volumes: w.paths,
		dir: a.volumes.podDir(pod.UID), sandbox: w.sandbox.id, cgroup: a.cgroup(pod.UID), memory: a.memory,
		imageUser: w.images[c.Image].Config.Config.User,
	}
	if o.current != nil {
		if !o.exited() {
			l.attempt = o.restarts // created and never started
		} else {
			l.attempt = o.restarts + 1
		}
		l.backOff = int(o.backOff / time.Second)
	}
	if c.TerminationMessagePath != "" {
		l.message = filepath.Join(l.dir, "containers", c.Name, strconv.Itoa(l.attempt))
		if err := os.MkdirAll(filepath.Dir(l.message), 0o700); err != nil {
			return l, err
		}
		if err := os.WriteFile(l.message, nil, 0o666); err != nil {
			return l, err
		}
		if err := os.Chmod(l.message, 0o666); err != nil { // any user in the container may write it
			return l, err
		}
	}
	return l, nil
}
