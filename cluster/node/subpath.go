package node

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// expandSubPath replaces $(NAME) in a path, which must lead somewhere below the volume then: the API
// checks a subPath that is written down, but cannot see what a variable holds.
func expandSubPath(expr string, values map[string]string) (string, error) {
	missing := ""
	path := expansion.Expand(expr, func(name string) string {
		if _, ok := values[name]; !ok {
			missing = name
		}
		return values[name]
	})
	switch {
	case missing != "":
		return "", fmt.Errorf("subPathExpr %q: missing value for %q", expr, missing)
	case filepath.IsAbs(path):
		return "", fmt.Errorf("subPathExpr %q: error SubPath `%s` must not be an absolute path", expr, path)
	case slices.Contains(strings.Split(path, "/"), ".."):
		return "", fmt.Errorf("subPathExpr %q: unable to provision SubPath `%s`: must not contain '..'", expr, path)
	}
	return path, nil
}
