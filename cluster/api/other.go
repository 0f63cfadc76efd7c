package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	goruntime "runtime"
	"sort"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// Version is the Kubernetes version whose API this is. Clients compare theirs with it.
const Version = "v1.37.2"

func versionInfo() version.Info {
	return version.Info{
		Major: "1", Minor: "37", EmulationMajor: "1", EmulationMinor: "37", MinCompatibilityMajor: "1", MinCompatibilityMinor: "36",
		GitVersion: Version + "+slipway", GitCommit: "", GitTreeState: "clean",
		GoVersion: goruntime.Version(), Compiler: goruntime.Compiler, Platform: goruntime.GOOS + "/" + goruntime.GOARCH,
	}
}

type keyDocs struct{ config, jwks []byte }

// serveOther answers every path that names no resource.
func (s *Server) serveOther(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		s.failPlain(w, req, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusMethodNotAllowed, Reason: metav1.StatusReasonMethodNotAllowed,
			Message: "the server does not allow this method on the requested resource", Details: &metav1.StatusDetails{},
		}})
		return
	}
	path := req.URL.Path
	switch {
	case path == "/":
		writeJSON(w, map[string][]string{"paths": s.paths()})
	case path == "/version" || path == "/version/":
		writeJSON(w, versionInfo())
	case path == "/api" || path == "/apis" || strings.HasPrefix(path, "/api/") || strings.HasPrefix(path, "/apis/"):
		if !s.discovery.serve(w, req) {
			s.failPlain(w, req, errNoRoute())
		}
	case strings.HasPrefix(path, "/openapi/"):
		s.openapi.ServeHTTP(w, req)
	case path == "/healthz" || path == "/livez" || path == "/readyz":
		s.health(w, req, path)
	case strings.HasPrefix(path, "/healthz/"), strings.HasPrefix(path, "/livez/"), strings.HasPrefix(path, "/readyz/"):
		s.healthCheck(w, req, path)
	case path == "/metrics":
		s.metrics.handler().ServeHTTP(w, req)
	case strings.HasPrefix(path, "/debug/pprof/"):
		serveProfile(w, req)
	case path == "/.well-known/openid-configuration":
		writeBytes(w, "application/json", s.keys.config)
	case path == "/openid/v1/jwks":
		writeBytes(w, "application/jwk-set+json", s.keys.jwks)
	default:
		s.failPlain(w, req, errNoRoute())
	}
}

func (s *Server) failPlain(w http.ResponseWriter, req *http.Request, err error) {
	c := &call{s: s, w: &recorder{ResponseWriter: w}, req: req}
	c.fail(err)
}

func (s *Server) paths() []string {
	paths := []string{
		"/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/debug/pprof/", "/healthz", "/livez", "/metrics",
		"/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version",
	}
	for gv := range s.discovery.resources {
		if gv.Group != "" {
			paths = append(paths, "/apis/"+gv.Group, "/apis/"+gv.String())
		}
	}
	sort.Strings(paths)
	return paths
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeBytes(w, "application/json", body)
}

func writeBytes(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Write(body)
}

// health: alive is answering at all; ready is having what every cluster has.
func (s *Server) health(w http.ResponseWriter, req *http.Request, path string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if path != "/livez" && !s.isReady() {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "[+]ping ok\n[-]bootstrap failed: the cluster's own objects are being made\n%s check failed\n", strings.Trim(path, "/"))
		return
	}
	if !req.URL.Query().Has("verbose") {
		fmt.Fprint(w, "ok")
		return
	}
	fmt.Fprint(w, "[+]ping ok\n")
	if path != "/livez" {
		fmt.Fprint(w, "[+]bootstrap ok\n")
	}
	fmt.Fprintf(w, "%s check passed\n", strings.Trim(path, "/"))
}

// asksForCRDs is what kubectl asks when it does not know the kind of a manifest. An error would be all that it says: with an
// empty list it names the kind.
func asksForCRDs(i *request.RequestInfo) bool {
	return i.APIGroup == "apiextensions.k8s.io" && i.APIVersion == "v1" && i.Resource == "customresourcedefinitions" && i.Subresource == "" && i.Verb == "list"
}

var noCRDs = metav1.List{TypeMeta: metav1.TypeMeta{Kind: "CustomResourceDefinitionList", APIVersion: "apiextensions.k8s.io/v1"}, Items: []runtime.RawExtension{}}

func (s *Server) healthCheck(w http.ResponseWriter, req *http.Request, path string) {
	check := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case check == "ping", check == "bootstrap" && s.isReady():
		fmt.Fprint(w, "ok")
	case check == "bootstrap":
		http.Error(w, "the cluster's own objects are being made", http.StatusInternalServerError)
	default:
		s.failPlain(w, req, errNoRoute())
	}
}
