package openapi

import (
	"compress/gzip"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func BenchmarkParser(b *testing.B) {
	for b.Loop() {
		if _, err := Parser(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestParserKnowsPods(t *testing.T) {
	p, err := Parser()
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Type("io.k8s.api.core.v1.Pod").FromYAML("{spec: {containers: [{name: a, image: b}]}}")
	if err != nil {
		t.Fatal(err)
	}
	fields, err := v.ToFieldSet()
	if err != nil {
		t.Fatal(err)
	}
	if want := `.spec.containers[name="a"].image`; !strings.Contains(fields.String(), want) {
		t.Errorf("fields of a pod are\n%s\nwant %s among them: containers merge by name", fields, want)
	}
}

func FuzzDecodeTypes(f *testing.F) {
	b, err := data.ReadFile("data/types.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:2000])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		types, err := DecodeTypes(in)
		if err != nil {
			return
		}
		if _, err := EncodeTypes(types); err != nil {
			t.Errorf("what was decoded cannot be encoded: %v", err)
		}
	})
}

func TestHandler(t *testing.T) {
	h := NewHandler()
	get := func(path, accept, encoding string) *httptest.ResponseRecorder {
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("Accept", accept)
		req.Header.Set("Accept-Encoding", encoding)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w
	}
	for _, tt := range []struct {
		path, accept, contentType string
		code                      int
	}{
		{"/openapi/v2", "application/json", "application/json", 200},
		{"/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf", protobufV2, 200},
		{"/openapi/v2", "text/html", "text/plain; charset=utf-8", 406},
		{"/openapi/v3", "*/*", "application/json", 200},
		{"/openapi/v3/apis/apps/v1", "application/json", "application/json", 200},
		{"/openapi/v3/apis/apps/v1beta1", "application/json", "text/plain; charset=utf-8", 404},
		{"/openapi/v3/../v2", "application/json", "text/plain; charset=utf-8", 404},
	} {
		w := get(tt.path, tt.accept, "gzip")
		if w.Code != tt.code || w.Header().Get("Content-Type") != tt.contentType {
			t.Errorf("GET %s as %s: %d %s; want %d %s", tt.path, tt.accept, w.Code, w.Header().Get("Content-Type"), tt.code, tt.contentType)
		}
	}
	w := get("/openapi/v3/apis/apps/v1", "application/json", "")
	var doc struct{ Paths map[string]any }
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal("plain document:", err)
	}
	if doc.Paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"] == nil || doc.Paths["/apis/apps/v1/daemonsets"] != nil {
		t.Error("the document of apps/v1 does not have exactly what is served")
	}
	z, err := gzip.NewReader(get("/openapi/v3/apis/apps/v1", "application/json", "gzip").Body)
	if err != nil {
		t.Fatal("compressed document:", err)
	}
	z.Close()
	req := httptest.NewRequest("GET", "/openapi/v2", nil)
	req.Header.Set("If-None-Match", get("/openapi/v2", "", "gzip").Header().Get("Etag"))
	again := httptest.NewRecorder()
	h.ServeHTTP(again, req)
	if again.Code != http.StatusNotModified {
		t.Errorf("the same document again: %d; want 304", again.Code)
	}
}
