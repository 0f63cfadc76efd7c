package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
)

// nodeProxy is nodes/proxy: it shows what a node's kubelet API shows. Upstream's would resolve the node's name, and lead to everything
// that the kubelet has: who may get nodes/proxy could run commands in every pod, past the rights to pods/exec and the audit log.
type nodeProxy struct {
	kubelets kubeletclient.ConnectionInfoGetter
}

var _ rest.Connecter = nodeProxy{}

// shownByKubelet are the paths of the kubelet API that only show.
var shownByKubelet = []string{"/healthz", "/metrics", "/metrics/resource", "/pods", "/stats/summary"}

func (nodeProxy) New() runtime.Object { return &core.NodeProxyOptions{} }
func (nodeProxy) Destroy()            {}

func (nodeProxy) ConnectMethods() []string {
	return []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions}
}

func (nodeProxy) NewConnectOptions() (runtime.Object, bool, string) {
	return &core.NodeProxyOptions{}, true, "path"
}

// Connect finds the node, by its name or by NAME:10250, and what is asked of it.
func (p nodeProxy) Connect(ctx context.Context, id string, opts runtime.Object, responder rest.Responder) (http.Handler, error) {
	_, name, port, valid := utilnet.SplitSchemeNamePort(id)
	if !valid {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", id))
	}
	info, err := p.kubelets.GetConnectionInfo(ctx, types.NodeName(name))
	if err != nil {
		return nil, err
	}
	if port != "" && port != info.Port {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("node %s is reached at its kubelet's port %s alone, not at %s", name, info.Port, port))
	}
	path := "/" + strings.Trim(opts.(*core.NodeProxyOptions).Path, "/")
	if !slices.Contains(shownByKubelet, path) {
		return nil, notShown(name, path)
	}
	location := &url.URL{Scheme: info.Scheme, Host: net.JoinHostPort(info.Hostname, info.Port), Path: path}
	return onlyRead(name, proxy.NewUpgradeAwareHandler(location, info.Transport, true, false, proxy.NewErrorResponder(responder))), nil
}

func notShown(node, path string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: fmt.Sprintf("the kubelet of node %s has no %s to show: it has %s", node, path, strings.Join(shownByKubelet, ", ")), Details: &metav1.StatusDetails{},
	}}
}

// onlyRead lets through what changes nothing.
func onlyRead(node string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			http.Error(w, fmt.Sprintf("the kubelet of node %s is only read through its proxy: %s is not allowed", node, req.Method), http.StatusMethodNotAllowed)
			return
		}
		// Upstream's handler would give a slash at the end to the kubelet, whose paths have none.
		req = req.Clone(req.Context())
		req.URL.Path = strings.TrimSuffix(req.URL.Path, "/")
		h.ServeHTTP(w, req)
	})
}
