// Package openapi publishes what the API's objects look like.
//
// The documents are upstream's own, cut down to what is served (served.txt) and compressed
// when they are generated; they are sent as they lie in the executable, which costs no
// memory until somebody asks, and next to none then. The types that server-side apply and
// managed fields need come from the same documents, in a form that loads in milliseconds.
//
// go generate makes everything under data anew; a test in cluster/api fails when served.txt
// is not what the API serves.
package openapi

import (
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

//go:generate go run ./gen

//go:embed data
var data embed.FS

// Served is the list that the documents were generated for: lines of
// "prefix resource[/subresource]", such as "apis/apps/v1 deployments/scale".
//
//go:embed served.txt
var Served string

// Parser knows the types of all served objects.
func Parser() (*typed.Parser, error) {
	b, err := data.ReadFile("data/types.bin")
	if err != nil {
		return nil, fmt.Errorf("openapi: %w", err)
	}
	types, err := DecodeTypes(b)
	if err != nil {
		return nil, err
	}
	return &typed.Parser{Schema: schema.Schema{Types: types}}, nil
}

// Handler serves /openapi/v2 and /openapi/v3.
type Handler struct {
	index func() ([]byte, error)

	mu    sync.Mutex
	etags map[string]string
}

// NewHandler does nothing until the first request.
func NewHandler() *Handler {
	h := &Handler{etags: map[string]string{}}
	h.index = sync.OnceValues(h.makeIndex)
	return h
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p := strings.TrimSuffix(req.URL.Path, "/")
	switch {
	case p == "/openapi/v2":
		h.serveV2(w, req)
	case p == "/openapi/v3":
		body, err := h.index()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	case strings.HasPrefix(p, "/openapi/v3/"):
		h.serveV3(w, req, strings.TrimPrefix(p, "/openapi/v3/"))
	default:
		http.NotFound(w, req)
	}
}

const protobufV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

func (h *Handler) serveV2(w http.ResponseWriter, req *http.Request) {
	for _, typ := range accepted(req) {
		switch typ {
		case "application/json", "*/*", "application/*":
			h.serveFile(w, req, "data/v2.json.gz", "application/json")
			return
		case protobufV2, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf":
			h.serveFile(w, req, "data/v2.pb.gz", protobufV2)
			return
		}
	}
	http.Error(w, "this document is served as application/json or "+protobufV2, http.StatusNotAcceptable)
}

func (h *Handler) serveV3(w http.ResponseWriter, req *http.Request, group string) {
	name := fileOf(group)
	if _, err := fs.Stat(data, name); err != nil || strings.Contains(group, "_") {
		http.NotFound(w, req)
		return
	}
	for _, typ := range accepted(req) {
		if typ != "application/json" && typ != "*/*" && typ != "application/*" {
			continue
		}
		if req.URL.Query().Get("hash") != "" { // the name changes with the content
			w.Header().Set("Cache-Control", "public, immutable")
		}
		h.serveFile(w, req, name, "application/json")
		return
	}
	http.Error(w, "this document is served as application/json", http.StatusNotAcceptable)
}

func fileOf(group string) string {
	return path.Join("data/v3", strings.ReplaceAll(group, "/", "_")+".json.gz")
}

// accepted are the media types that a client takes, in its order.
func accepted(req *http.Request) []string {
	header := req.Header.Get("Accept")
	if header == "" {
		return []string{"*/*"}
	}
	var out []string
	for part := range strings.SplitSeq(header, ",") {
		typ, _, err := mime.ParseMediaType(part)
		if err != nil { // the old protobuf type has an @, which is against the rules
			typ, _, _ = strings.Cut(strings.TrimSpace(part), ";")
		}
		out = append(out, typ)
	}
	return out
}

func (h *Handler) etag(name string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.etags[name]; ok {
		return e, nil
	}
	b, err := data.ReadFile(name)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	h.etags[name] = strings.ToUpper(hex.EncodeToString(sum[:]))
	return h.etags[name], nil
}

func (h *Handler) serveFile(w http.ResponseWriter, req *http.Request, name, contentType string) {
	tag, err := h.etag(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	head := w.Header()
	head.Set("Etag", `"`+tag+`"`)
	head.Add("Vary", "Accept")
	head.Add("Vary", "Accept-Encoding")
	if req.Header.Get("If-None-Match") == `"`+tag+`"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	f, err := data.Open(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	head.Set("Content-Type", contentType)
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		head.Set("Content-Encoding", "gzip")
		io.Copy(w, f)
		return
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	io.Copy(w, z)
}

// makeIndex is /openapi/v3: where the document of each group is.
func (h *Handler) makeIndex() ([]byte, error) {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := map[string]entry{}
	for line := range strings.Lines(Served) {
		group, _, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		tag, err := h.etag(fileOf(group))
		if err != nil {
			return nil, fmt.Errorf("openapi document of %s: %w", group, err)
		}
		paths[group] = entry{"/openapi/v3/" + group + "?hash=" + tag}
	}
	return json.Marshal(map[string]any{"paths": paths})
}
