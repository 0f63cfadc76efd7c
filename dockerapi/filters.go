package dockerapi

import (
	"encoding/json"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// filters are the criteria of a list, prune or events request: for each key the accepted values. Its zero
// value accepts everything. Values of one key are alternatives, except labels, which must all hold.
type filters map[string][]string

// parseFilters reads the filters parameter, in today's form {"key":{"value":true}} or the one before
// Docker 1.10, {"key":["value"]}, and refuses keys that are not allowed.
func parseFilters(r *request, allowed ...string) (filters, error) {
	raw := r.query.Get("filters")
	if raw == "" {
		return nil, nil
	}
	f, err := decodeFilters([]byte(raw))
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(allowed, key) {
			return nil, invalid("invalid filter '%s'", key)
		}
	}
	return f, nil
}

func decodeFilters(raw []byte) (filters, error) {
	f := filters{}
	var sets map[string]map[string]bool
	if json.Unmarshal(raw, &sets) == nil {
		for key, values := range sets {
			f[key] = slices.Sorted(maps.Keys(values))
		}
		return f, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal(raw, &lists); err != nil {
		return nil, invalid("invalid filter: %s: want a JSON object of the form {\"key\":{\"value\":true}}", raw)
	}
	maps.Copy(f, lists)
	return f, nil
}

func (f filters) has(key string) bool { return len(f[key]) > 0 }

// accepts is true when the key is absent or fit holds for one of its values.
func (f filters) accepts(key string, fit func(want string) bool) bool {
	return !f.has(key) || slices.ContainsFunc(f[key], fit)
}

// exact is true when the key is absent or one of its values is v.
func (f filters) exact(key, v string) bool {
	return f.accepts(key, func(want string) bool { return want == v })
}

// name matches as Docker does: the value itself, or a regular expression found in it.
func (f filters) name(key string, names ...string) bool {
	return f.accepts(key, func(want string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return nameFits(want, n) })
	})
}

func nameFits(want, name string) bool {
	if want == name || strings.Contains(name, want) {
		return true
	}
	re, err := regexp.Compile(want)
	return err == nil && re.MatchString(name)
}

// labels is true when all wanted labels, "key" or "key=value", are present and none of the refused ones.
func (f filters) labels(labels map[string]string) bool {
	for _, want := range f["label"] {
		if !hasLabel(labels, want) {
			return false
		}
	}
	return !slices.ContainsFunc(f["label!"], func(want string) bool { return hasLabel(labels, want) })
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!valued || got == value)
}

// boolean reads a filter such as dangling=true. set is false when it is absent.
func (f filters) boolean(key string) (value, set bool, err error) {
	if !f.has(key) {
		return false, false, nil
	}
	for _, v := range f[key] {
		switch strings.ToLower(v) {
		case "1", "true":
			value = true
		case "0", "false":
		default:
			return false, false, invalid("invalid filter '%s=%s': must be a boolean", key, v)
		}
	}
	if len(f[key]) > 1 {
		return false, false, invalid("invalid filter '%s=%s'", key, f[key])
	}
	return value, true, nil
}

// glob matches a shell pattern such as app:* as the reference filter of images does.
func glob(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}

// until reads the moment before which things must have been made to be pruned; zero: any time.
func (f filters) until(now time.Time) (time.Time, error) {
	if !f.has("until") {
		return time.Time{}, nil
	}
	if len(f["until"]) > 1 {
		return time.Time{}, invalid("more than one until filter specified")
	}
	t, err := parseTime(f["until"][0], now)
	if err != nil {
		return t, invalid("invalid filter 'until=%s': %v", f["until"][0], err)
	}
	return t, nil
}
