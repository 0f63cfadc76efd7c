package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	core "k8s.io/kubernetes/pkg/apis/core"
	registrypod "k8s.io/kubernetes/pkg/registry/core/pod"
)

func configMap(name string, labels map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: labels}, Data: map[string]string{"k": "v"}}
}

// clients are the administrator's, in both encodings.
func (i *instance) clients(t testing.TB) map[string]*kubernetes.Clientset {
	t.Helper()
	json := rest.CopyConfig(i.config)
	json.ContentType, json.AcceptContentTypes = "application/json", "application/json"
	return map[string]*kubernetes.Clientset{
		"protobuf": kubernetes.NewForConfigOrDie(i.config),
		"json":     kubernetes.NewForConfigOrDie(json),
	}
}

func TestCreateGetUpdateDelete(t *testing.T) {
	i := start(t)
	for name, cs := range i.clients(t) {
		cm := cs.CoreV1().ConfigMaps("default")
		made, err := cm.Create(t.Context(), configMap("a-"+name, nil), metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%s: create: %v", name, err)
		}
		got, err := cm.Get(t.Context(), made.Name, metav1.GetOptions{})
		if err != nil || !reflect.DeepEqual(got, made) {
			t.Errorf("%s: get gives %v, %v; create gave %v", name, got, err, made)
		}
		got.Data["k"] = "w"
		if got, err = cm.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil || got.Data["k"] != "w" {
			t.Errorf("%s: update: %v, %v", name, got, err)
		}
		if _, err := cm.Update(t.Context(), made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("%s: update of an old version: %v; want a conflict", name, err)
		}
		same, err := cm.Update(t.Context(), got, metav1.UpdateOptions{})
		if err != nil || same.ResourceVersion != got.ResourceVersion {
			t.Errorf("%s: an update that changes nothing made version %s of %s, %v", name, same.ResourceVersion, got.ResourceVersion, err)
		}
		if err := cm.Delete(t.Context(), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("%s: delete: %v", name, err)
		}
		if _, err := cm.Get(t.Context(), made.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s: get after delete: %v", name, err)
		}
	}
}

func TestListPagesAreOneState(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	for n := range 10 {
		if _, err := cm.Create(t.Context(), configMap(fmt.Sprint("c", n), map[string]string{"odd": fmt.Sprint(n%2 == 1)}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	opts := metav1.ListOptions{Limit: 4}
	for page := 0; ; page++ {
		list, err := cm.List(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list.Items {
			names = append(names, c.Name)
		}
		if page == 0 {
			if list.RemainingItemCount == nil || *list.RemainingItemCount != 6 {
				t.Errorf("after the first page %v items remain; want 6", list.RemainingItemCount)
			}
			if err := cm.Delete(t.Context(), "c9", metav1.DeleteOptions{}); err != nil { // the list does not see this
				t.Fatal(err)
			}
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
	}
	if got := strings.Join(names, " "); got != "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9" {
		t.Errorf("the pages have %s", got)
	}
	lateForThePages(t, cm)
	for _, tt := range []struct {
		labels, fields string
		want           string
	}{
		{"odd=true", "", "c1 c3 c5 c7"},
		{"odd notin (true)", "metadata.name!=c0", "c2 c4 c6 c8"},
		{"", "metadata.name=c3", "c3"},
		{"odd=false", "metadata.name=c3", ""},
		{"", "metadata.namespace=default,metadata.name=c1", "c1"},
		{"!odd", "", ""},
	} {
		list, err := cm.List(t.Context(), metav1.ListOptions{LabelSelector: tt.labels, FieldSelector: tt.fields})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range list.Items {
			got = append(got, c.Name)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("labels %q fields %q select %v; want %s", tt.labels, tt.fields, got, tt.want)
		}
	}
}

func TestListAtAVersion(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	a, err := cm.Create(t.Context(), configMap("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cm.Create(t.Context(), configMap("b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		rv, match string
		want      int
		fails     func(error) bool
	}{
		{"", "", 2, nil},
		{"0", "", 2, nil},
		{a.ResourceVersion, "NotOlderThan", 2, nil},
		{a.ResourceVersion, "Exact", 1, nil},
		{"1", "Exact", 0, nil}, // the beginning of this history: there was none
		{"999999999", "Exact", 0, apierrors.IsTimeout},
		{"x", "", 0, apierrors.IsBadRequest},
		{"", "Exact", 0, apierrors.IsInvalid},
	} {
		list, err := cm.List(t.Context(), metav1.ListOptions{ResourceVersion: tt.rv, ResourceVersionMatch: metav1.ResourceVersionMatch(tt.match)})
		switch {
		case tt.fails != nil:
			if !tt.fails(err) {
				t.Errorf("list at %q %s: %v", tt.rv, tt.match, err)
			}
		case err != nil || len(list.Items) != tt.want:
			t.Errorf("list at %q %s has %d items, %v; want %d", tt.rv, tt.match, len(list.Items), err, tt.want)
		}
	}
}

// collectWatch turns events into words until n have come.
func collectWatch(t *testing.T, w watch.Interface, n int) []string {
	t.Helper()
	var got []string
	for len(got) < n {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch ended after %v", got)
			}
			if s, isStatus := e.Object.(*metav1.Status); isStatus {
				got = append(got, fmt.Sprint(e.Type, " ", s.Code))
				continue
			}
			o := e.Object.(metav1.Object)
			word := fmt.Sprint(e.Type, " ", o.GetName())
			if o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				word = "INITIAL END"
			}
			got = append(got, word)
		case <-time.After(time.Minute):
			t.Fatalf("only %v came; want %d events", got, n)
		}
	}
	return got
}

func TestWatchSelections(t *testing.T) {
	i := start(t)
	for name, cs := range i.clients(t) {
		cm := cs.CoreV1().ConfigMaps("default")
		ctx, cancel := context.WithCancel(t.Context())
		mine := map[string]string{"set": name}
		if _, err := cm.Create(ctx, configMap("old-"+name, mine), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w, err := cm.Watch(ctx, metav1.ListOptions{LabelSelector: "set=" + name})
		if err != nil {
			t.Fatal(err)
		}
		c, err := cm.Create(ctx, configMap("x-"+name, mine), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.Data["k"] = "1"
		c, _ = cm.Update(ctx, c, metav1.UpdateOptions{})
		c.Labels = nil
		c, _ = cm.Update(ctx, c, metav1.UpdateOptions{}) // leaves the selection
		left := c.ResourceVersion
		c.Data["k"] = "2"
		c, _ = cm.Update(ctx, c, metav1.UpdateOptions{}) // unseen
		c.Labels = mine
		if _, err = cm.Update(ctx, c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := cm.Delete(ctx, c.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll("ADDED old-N|ADDED x-N|MODIFIED x-N|DELETED x-N|ADDED x-N|DELETED x-N", "N", name)
		if got := strings.Join(collectWatch(t, w, 6), "|"); got != want {
			t.Errorf("%s: the watch saw %s; want %s", name, got, want)
		}
		// The event of leaving carries the version that did it, so that a watch resumes after it.
		again, err := cm.Watch(ctx, metav1.ListOptions{LabelSelector: "set=" + name, ResourceVersion: left})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(collectWatch(t, again, 2), "|"); got != strings.ReplaceAll("ADDED x-N|DELETED x-N", "N", name) {
			t.Errorf("%s: resumed after version %s the watch saw %s", name, left, got)
		}
		cancel()
	}
}

func TestWatchListAndBookmarks(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	if _, err := cm.Create(t.Context(), configMap("a", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	yes := true
	w, err := cm.Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got := strings.Join(collectWatch(t, w, 2), "|"); got != "ADDED a|INITIAL END" {
		t.Errorf("the watch list began with %s", got)
	}
	if _, err := cm.Create(t.Context(), configMap("b", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := collectWatch(t, w, 1); got[0] != "ADDED b" {
		t.Errorf("then came %s", got)
	}
}

// A version that history has forgotten is answered in the stream, as reflectors expect.
func TestWatchTooOld(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	big := configMap("big", nil)
	first, err := cm.Create(t.Context(), big, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := first
	for n := range 100 { // more bytes than are remembered
		c.Data["k"] = strings.Repeat(fmt.Sprint(n%10), 900<<10)
		if c, err = cm.Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w, err := cm.Watch(t.Context(), metav1.ListOptions{ResourceVersion: first.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got := collectWatch(t, w, 1); got[0] != "ERROR 410" {
		t.Errorf("the watch of a forgotten version began with %s", got)
	}
	if _, err := cm.List(t.Context(), metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: "Exact"}); !apierrors.IsResourceExpired(err) {
		t.Errorf("the list of a forgotten version: %v; want 410", err)
	}
}

func TestInformers(t *testing.T) {
	i := start(t)
	for name, cs := range i.clients(t) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		f := informers.NewSharedInformerFactory(cs, 0)
		inf := f.Core().V1().ConfigMaps().Informer()
		seen := make(chan string, 16)
		if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(o any) { seen <- o.(*corev1.ConfigMap).Name }}); err != nil {
			t.Fatal(err)
		}
		f.Start(ctx.Done())
		if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
			t.Fatalf("%s: the informer does not sync", name)
		}
		if _, err := cs.CoreV1().ConfigMaps("default").Create(ctx, configMap("inf-"+name, nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for got := ""; got != "inf-"+name; {
			select {
			case got = <-seen:
			case <-ctx.Done():
				t.Fatalf("%s: the informer never saw the new object", name)
			}
		}
		cancel()
		f.Shutdown()
	}
}

func TestMetadataAndUnstructured(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	if _, err := cs.CoreV1().ConfigMaps("default").Create(t.Context(), configMap("a", map[string]string{"x": "y"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	gvr := corev1.SchemeGroupVersion.WithResource("configmaps")
	mc := metadata.NewForConfigOrDie(i.config).Resource(gvr).Namespace("default")
	one, err := mc.Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || one.Labels["x"] != "y" {
		t.Errorf("metadata of one: %v, %v", one, err)
	}
	list, err := mc.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" {
		t.Errorf("metadata of all: %v, %v", list, err)
	}
	w, err := mc.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got := collectWatch(t, w, 1); got[0] != "ADDED a" {
		t.Errorf("the metadata watch began with %v", got)
	}
	js := rest.CopyConfig(i.config)
	js.ContentType, js.AcceptContentTypes = "application/json", "application/json"
	u, err := dynamic.NewForConfigOrDie(js).Resource(gvr).Namespace("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(u.Items) != 1 || u.GetKind() != "ConfigMapList" {
		t.Fatalf("unstructured list: %v, %v", u, err)
	}
	if v, _, _ := unstructured.NestedString(u.Items[0].Object, "data", "k"); v != "v" {
		t.Errorf("unstructured object: %v", u.Items[0])
	}
}

func TestEventsInBothGroups(t *testing.T) {
	i := start(t)
	cs := kubernetes.NewForConfigOrDie(i.config)
	if _, err := cs.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "e", Namespace: "default"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "a", Namespace: "default"},
		Reason:         "Started", Message: "it did", Type: "Normal", Source: corev1.EventSource{Component: "test"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	e, err := cs.EventsV1().Events("default").Get(t.Context(), "e", metav1.GetOptions{})
	if err != nil || e.Note != "it did" || e.Regarding.Name != "a" {
		t.Errorf("events.k8s.io shows %v, %v", e, err)
	}
	list, err := cs.EventsV1().Events("").List(t.Context(), metav1.ListOptions{FieldSelector: "regarding.name=a"})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("events.k8s.io lists %v, %v", list, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lw := cache.NewListWatchFromClient(cs.EventsV1().RESTClient(), "events", "default", fields.Everything())
	_, err = watchtools.Until(ctx, "1", lw, func(e watch.Event) (bool, error) { return e.Type == watch.Added, nil })
	if err != nil && !errors.Is(err, watchtools.ErrWatchClosed) && !apierrors.IsResourceExpired(err) {
		t.Errorf("events.k8s.io watch: %v", err)
	}
}

// Field selectors on v1 objects see what upstream's see on internal ones.
func TestFieldsAreUpstreams(t *testing.T) {
	pod := podOf("a")
	pod.Spec.NodeName, pod.Status.Phase, pod.Spec.HostNetwork = "n1", corev1.PodRunning, true
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{}
	pod.Status.PodIP, pod.Status.PodIPs = "10.0.0.1", []corev1.PodIP{{IP: "10.0.0.1"}}
	in, err := scheme.ConvertToVersion(pod, core.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	_, want, err := registrypod.GetAttrs(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := fieldsOf(pod); !reflect.DeepEqual(got, want) {
		t.Errorf("fields of a pod are\n%v; upstream's are\n%v", got, want)
	}
}

func TestNodeSelectorUsesTheIndex(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	for _, n := range []string{"p1", "p2", "p3"} {
		p := podOf(n)
		p.Spec.NodeName = "node-" + n
		if _, err := i.Client().Create(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	list, err := kubernetes.NewForConfigOrDie(i.config).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=node-p2"})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "p2" {
		t.Errorf("pods of a node: %v, %v", list, err)
	}
}

func TestEncodings(t *testing.T) {
	i := start(t)
	if _, err := i.Client().Create(t.Context(), configMap("a", nil)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ accept, contentType, begins string }{
		{"application/json", "application/json", `{"kind":"ConfigMap","apiVersion":"v1"`},
		{"application/yaml", "application/yaml", "apiVersion: v1\n"},
		{"application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf", "k8s\x00"},
		{"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json", `{"kind":"Table","apiVersion":"meta.k8s.io/v1"`},
		{"application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "application/json", `{"kind":"PartialObjectMetadata"`},
		{"*/*", "application/json", `{"kind"`},
		{"text/html", "application/json", "{\n  \"kind\": \"Status\""},
		{"application/json;as=Teapot;v=v1;g=meta.k8s.io", "application/json", "{\n  \"kind\": \"Status\""},
	} {
		code, header, body := i.raw(t, "GET", "/api/v1/namespaces/default/configmaps/a", tt.accept, "")
		if header.Get("Content-Type") != tt.contentType || !strings.HasPrefix(body, tt.begins) {
			t.Errorf("accept %q: %d %s %.60q; want %s %q", tt.accept, code, header.Get("Content-Type"), body, tt.contentType, tt.begins)
		}
	}
	_, _, body := i.raw(t, "GET", "/api/v1/namespaces/default/configmaps", "application/json", "")
	if strings.Contains(body, `"items":[{"kind"`) || !strings.HasPrefix(body, `{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":`) {
		t.Errorf("a list reads %.200s", body)
	}
	_, _, body = i.raw(t, "GET", "/api/v1/namespaces/kube-public/configmaps", "application/json", "")
	if !strings.Contains(body, `"items":[]`) {
		t.Errorf("an empty list reads %.200s", body)
	}
}

// raw sends one request with the administrator's certificate.
// lateForThePages asks for a second page when its list began too long ago: the answer says how to go on anyhow.
func lateForThePages(t *testing.T, cm typedcorev1.ConfigMapInterface) {
	t.Helper()
	first, err := cm.List(t.Context(), metav1.ListOptions{Limit: 4})
	if err != nil {
		t.Fatal(err)
	}
	token, err := decodeContinue(first.Continue)
	if err != nil {
		t.Fatal(err)
	}
	token.Began -= int64(pagesKept/time.Second) + 1
	late, err := token.encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = cm.List(t.Context(), metav1.ListOptions{Limit: 4, Continue: late})
	if !apierrors.IsResourceExpired(err) {
		t.Fatalf("a page of a list that began too long ago: %v; want Expired", err)
	}
	var status apierrors.APIStatus
	if errors.As(err, &status); status.Status().ListMeta.Continue == "" {
		t.Fatalf("the error has no token to go on with: %+v", status.Status())
	}
	rest, err := cm.List(t.Context(), metav1.ListOptions{Limit: 4, Continue: status.Status().ListMeta.Continue})
	if err != nil || len(rest.Items) == 0 || rest.Items[0].Name != "c4" {
		t.Errorf("going on with the error's token: %v, %v; want c4 and what follows", rest, err)
	}
}

func (i *instance) raw(t testing.TB, method, path, accept, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, i.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := i.http(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// Every stored kind can be listed, watched and shown as a table.
func TestEveryKindReads(t *testing.T) {
	i := start(t)
	var paths []string
	for gvr, r := range i.resources {
		if r.kind == nil {
			continue
		}
		prefix := "/apis/" + gvr.GroupVersion().String()
		if gvr.Group == "" {
			prefix = "/api/v1"
		}
		paths = append(paths, prefix+"/"+gvr.Resource)
	}
	sort.Strings(paths)
	for _, p := range paths {
		for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf", "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"} {
			if code, _, body := i.raw(t, "GET", p, accept, ""); code != http.StatusOK {
				t.Errorf("GET %s as %s: %d %s", p, accept, code, body)
			}
		}
		if err := i.watchOnce(t, p+"?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"); err != nil {
			t.Errorf("watch %s: %v", p, err)
		}
	}
	if len(paths) < 28 {
		t.Errorf("only %d kinds are served: %v", len(paths), paths)
	}
}

// watchOnce reads a watch until the initial events have ended.
func (i *instance) watchOnce(t *testing.T, path string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", i.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := i.http(t).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), metav1.InitialEventsAnnotationKey) {
			return nil
		}
	}
	return fmt.Errorf("%s: ended without the end of the initial events: %v", resp.Status, lines.Err())
}
