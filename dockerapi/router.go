package dockerapi

import "strings"

// handler answers one kind of request. An error returned before the reply began becomes its status.
type handler func(w *reply, r *request) error

// router finds the handler of a request. Unlike http.ServeMux it allows {name...} in the middle of a
// pattern, because image names hold slashes: /images/{name...}/json. The first pattern that fits wins,
// so literal ones are added before it. Its zero value is an empty router.
type router struct {
	routes []route
}

type route struct {
	method  string
	pattern []string
	handle  handler
}

func (t *router) add(method, pattern string, h handler) {
	t.routes = append(t.routes, route{method, segments(pattern), h})
}

// find returns nil when no route has that method and path.
func (t *router) find(method, path string) (handler, map[string]string) {
	parts := segments(path)
	for _, r := range t.routes {
		if r.method != method {
			continue
		}
		if vars, ok := match(r.pattern, parts); ok {
			return r.handle, vars
		}
	}
	return nil, nil
}

func segments(path string) []string {
	return strings.Split(strings.Trim(path, "/"), "/")
}

func match(pattern, parts []string) (map[string]string, bool) {
	vars := map[string]string{}
	for len(pattern) > 0 {
		if len(parts) < len(pattern) {
			return nil, false
		}
		name, variable := strings.CutPrefix(pattern[0], "{")
		switch {
		case strings.HasSuffix(name, "...}") && variable:
			n := len(parts) - len(pattern) + 1
			vars[strings.TrimSuffix(name, "...}")] = strings.Join(parts[:n], "/")
			pattern, parts = pattern[1:], parts[n:]
			continue
		case variable && parts[0] != "":
			vars[strings.TrimSuffix(name, "}")] = parts[0]
		case pattern[0] != parts[0]:
			return nil, false
		}
		pattern, parts = pattern[1:], parts[1:]
	}
	return vars, len(parts) == 0
}
