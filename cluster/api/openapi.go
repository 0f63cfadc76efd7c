package api

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

func newOpenAPI(map[schema.GroupVersion]group) (http.Handler, error) {
	return http.NotFoundHandler(), nil
}
