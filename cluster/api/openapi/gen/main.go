// Command gen cuts what upstream publishes about its API down to what this server serves, and
// compresses it: see package openapi. It reads the committed documents in the module
// k8s.io/kubernetes, and served.txt: one "group/version resource[/subresource]" a line.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"slipway.dev/slipway/cluster/api/openapi"
)

type object = map[string]any

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal("generate OpenAPI: ", err)
	}
}

func run() error {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return fmt.Errorf("find module k8s.io/kubernetes: %w", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "api", "openapi-spec")
	served, err := readServed("served.txt")
	if err != nil {
		return err
	}
	if err := os.RemoveAll("data"); err != nil {
		return err
	}
	models, err := writeV3(dir, served)
	if err != nil {
		return err
	}
	if err := writeV2(dir, served); err != nil {
		return err
	}
	return writeTypes(models)
}

// served is what is served, by the path prefix of its group ("apis/apps/v1").
type served map[string]map[string]bool

func readServed(name string) (served, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	s := served{}
	for line := range strings.Lines(string(data)) {
		prefix, resource, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if s[prefix] == nil {
			s[prefix] = map[string]bool{}
		}
		s[prefix][resource] = true
	}
	return s, nil
}

// keeps says whether a path of a document is served.
func (s served) keeps(path string) bool {
	path = strings.Trim(path, "/")
	prefix := ""
	for p := range s {
		if path == p || strings.HasPrefix(path, p+"/") {
			prefix = p
		}
	}
	if prefix == "" {
		group := strings.Split(path, "/")
		for p := range s {
			if strings.HasPrefix(p, strings.Join(group, "/")+"/") {
				return true // "/apis/apps" itself
			}
		}
		return path == "version" || path == "openid/v1/jwks" || strings.HasPrefix(path, ".well-known/openid")
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(path, prefix), "/"), "watch/")
	rest = strings.TrimPrefix(rest, "namespaces/{namespace}/")
	parts := strings.Split(rest, "/")
	if rest == "" {
		return true
	}
	name := parts[0]
	if len(parts) > 2 {
		name += "/" + parts[2]
	}
	return s[prefix][name]
}

// writeV3 writes a document for each group and returns the schemas of all.
func writeV3(dir string, s served) (map[string]*spec.Schema, error) {
	models := map[string]*spec.Schema{}
	for prefix := range s {
		file := strings.ReplaceAll(prefix, "/", "__") + "_openapi.json"
		doc, err := readJSON(filepath.Join(dir, "v3", file))
		if err != nil {
			return nil, err
		}
		prune(doc["paths"].(object), s)
		schemas := doc["components"].(object)["schemas"].(object)
		collect(models, schemas)
		drop(schemas, "#/components/schemas/", doc["paths"])
		if err := writeJSON(filepath.Join("data", "v3", strings.ReplaceAll(prefix, "/", "_")+".json.gz"), doc); err != nil {
			return nil, err
		}
	}
	return models, nil
}

func writeV2(dir string, s served) error {
	doc, err := readJSON(filepath.Join(dir, "swagger.json"))
	if err != nil {
		return err
	}
	prune(doc["paths"].(object), s)
	drop(doc["definitions"].(object), "#/definitions/", doc["paths"])
	if err := writeJSON(filepath.Join("data", "v2.json.gz"), doc); err != nil {
		return err
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	parsed, err := openapi_v2.ParseDocument(raw)
	if err != nil {
		return fmt.Errorf("parse the pruned v2 document: %w", err)
	}
	pb, err := proto.MarshalOptions{Deterministic: true}.Marshal(parsed)
	if err != nil {
		return err
	}
	return writeGzip(filepath.Join("data", "v2.pb.gz"), pb)
}

func prune(paths object, s served) {
	for p := range paths {
		if !s.keeps(p) {
			delete(paths, p)
		}
	}
}

// drop removes the definitions that nothing refers to any more.
func drop(defs object, ref string, roots any) {
	reached := map[string]bool{}
	var visit func(any)
	visit = func(v any) {
		switch v := v.(type) {
		case object:
			if r, ok := v["$ref"].(string); ok && strings.HasPrefix(r, ref) {
				if name := strings.TrimPrefix(r, ref); !reached[name] {
					reached[name] = true
					visit(defs[name])
				}
			}
			for _, e := range v {
				visit(e)
			}
		case []any:
			for _, e := range v {
				visit(e)
			}
		}
	}
	visit(roots)
	for name := range defs {
		if !reached[name] {
			delete(defs, name)
		}
	}
}

func collect(models map[string]*spec.Schema, schemas object) {
	for name, s := range schemas {
		raw, err := json.Marshal(s)
		if err != nil {
			log.Fatal(err)
		}
		parsed := &spec.Schema{}
		if err := json.Unmarshal(raw, parsed); err != nil {
			log.Fatalf("schema %s: %v", name, err)
		}
		models[name] = parsed
	}
}

// writeTypes writes the schema that managed fields need.
func writeTypes(models map[string]*spec.Schema) error {
	s, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		return err
	}
	data, err := openapi.EncodeTypes(s.Types)
	if err != nil {
		return err
	}
	back, err := openapi.DecodeTypes(data)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(s.Types, back) {
		return fmt.Errorf("the schema does not survive being encoded")
	}
	return os.WriteFile(filepath.Join("data", "types.bin"), data, 0o644)
}

func readJSON(name string) (object, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	doc := object{}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return doc, nil
}

func writeJSON(name string, doc any) error {
	data, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	return writeGzip(name, data)
}

func writeGzip(name string, data []byte) error {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(data); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, buf.Bytes(), 0o644)
}
