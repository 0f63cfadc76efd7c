package dockerapi

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"slipway.dev/slipway/engine/container"
)

// logDetails is what `docker logs --details` puts before each line: those of the container's labels and environment variables that its log
// options name, and the tag that they make. Docker writes them into each entry; here they are looked up, because they never change.
func logDetails(info container.Info) []byte {
	details := map[string]string{}
	for key, value := range info.Spec.Log.Options {
		switch key {
		case "labels":
			pick(details, info.Spec.Labels, named(value))
		case "labels-regex":
			pick(details, info.Spec.Labels, matching(value))
		case "env":
			pick(details, environment(info.Spec.Env), named(value))
		case "env-regex":
			pick(details, environment(info.Spec.Env), matching(value))
		case "tag":
			details["tag"] = logTag(value, info)
		}
	}
	if info.Spec.Log.Driver != "json-file" {
		clear(details) // Docker's other drivers keep none
	}
	pairs := make([]string, 0, len(details))
	for _, key := range slices.Sorted(maps.Keys(details)) {
		pairs = append(pairs, url.QueryEscape(key)+"="+url.QueryEscape(details[key]))
	}
	return []byte(strings.Join(pairs, ",") + " ")
}

func pick(to, from map[string]string, wanted func(string) bool) {
	for key, value := range from {
		if wanted(key) {
			to[key] = value
		}
	}
}

func named(list string) func(string) bool {
	names := strings.Split(list, ",")
	return func(key string) bool { return slices.Contains(names, key) }
}

// matching wants what the expression matches; one that is wrong was refused when the container was created.
func matching(expression string) func(string) bool {
	re, err := regexp.Compile(expression)
	return func(key string) bool { return err == nil && re.MatchString(key) }
}

func environment(list []string) map[string]string {
	env := map[string]string{}
	for _, e := range list {
		if key, value, ok := strings.Cut(e, "="); ok {
			env[key] = value
		}
	}
	return env
}

// tagSubject is what the template of a tag sees, by Docker's names.
type tagSubject struct {
	ID, FullID, Name, ImageID, ImageFullID, ImageName, Command, DaemonName string
}

// logTag fills in a tag; where it asks for what there is not, it stays as it was written.
func logTag(tag string, info container.Info) string {
	t, err := parseTag(tag)
	if err != nil {
		return tag
	}
	var b bytes.Buffer
	image := info.ImageID
	err = t.Execute(&b, tagSubject{
		ID: info.ID[:min(12, len(info.ID))], FullID: info.ID, Name: info.Name,
		ImageID: image[:min(12, len(image))], ImageFullID: image, ImageName: info.Spec.Image,
		Command: strings.Join(append([]string{info.Path}, info.Args...), " "), DaemonName: "docker",
	})
	if err != nil {
		return tag
	}
	return b.String()
}

func parseTag(tag string) (*template.Template, error) {
	return template.New("log-tag").Funcs(tagFunctions).Parse(tag)
}

var tagFunctions = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	},
	"split": strings.Split, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
	"truncate": func(s string, n int) string { return s[:min(max(n, 0), len(s))] },
}
