package dockerapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
)

// maxBody bounds a JSON request. The largest real ones, container creations with long environments, are a few hundred KB.
const maxBody = 8 << 20

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// readJSON decodes the body. Docker requires one JSON value of the right content type.
func readJSON(r *request, v any) error {
	if err := checkJSONType(r.Header.Get("Content-Type"), r.ContentLength); err != nil {
		return err
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return invalid("invalid JSON: got EOF while reading request body")
		}
		return invalid("invalid JSON: %v", err)
	}
	if dec.More() {
		return invalid("unexpected content after JSON")
	}
	return nil
}

// readOptionalJSON is readJSON where an empty body leaves v as it is.
func readOptionalJSON(r *request, v any) error {
	if r.ContentLength == 0 {
		return nil
	}
	if r.ContentLength > 0 {
		return readJSON(r, v)
	}
	// A chunked body may turn out to be empty.
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return invalid("read request body: %v", err)
	}
	if len(body) == 0 {
		return nil
	}
	whole := *r.Request
	whole.Body, whole.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return readJSON(&request{Request: &whole}, v)
}

func checkJSONType(ct string, length int64) error {
	if ct == "" && length == 0 {
		return invalid("invalid JSON: got EOF while reading request body")
	}
	if t, _, err := mime.ParseMediaType(ct); ct != "" && (err != nil || t != "application/json") {
		return invalid("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return nil
}

// withFields adds fields that a reply once had and its type has no longer. They never replace one that it has.
func withFields(v any, extra map[string]any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	if err != nil || len(extra) == 0 {
		return b, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("add fields to %T: %w", v, err)
	}
	for name, value := range extra {
		if _, has := fields[name]; has {
			continue
		}
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[name] = raw
	}
	return json.Marshal(fields)
}
