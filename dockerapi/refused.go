package dockerapi

import (
	"net/http"

	"github.com/containerd/errdefs"
)

const notManager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."

// refusedRoutes answers what clients ask of every daemon and this one does not do: swarm, managed plugins,
// checkpoints, registry search. A clear error keeps `docker` from falling back to something worse.
func (s *Server) refusedRoutes(t *router) {
	for _, p := range []struct{ method, pattern string }{
		{"GET", "/swarm"}, {"POST", "/swarm/leave"}, {"POST", "/swarm/update"}, {"POST", "/swarm/unlock"}, {"GET", "/swarm/unlockkey"},
		{"GET", "/nodes"}, {"GET", "/nodes/{id}"}, {"DELETE", "/nodes/{id}"}, {"POST", "/nodes/{id}/update"},
		{"GET", "/services"}, {"POST", "/services/create"}, {"GET", "/services/{id}"}, {"DELETE", "/services/{id}"},
		{"POST", "/services/{id}/update"}, {"GET", "/services/{id}/logs"},
		{"GET", "/tasks"}, {"GET", "/tasks/{id}"}, {"GET", "/tasks/{id}/logs"},
		{"GET", "/secrets"}, {"POST", "/secrets/create"}, {"GET", "/secrets/{id}"}, {"DELETE", "/secrets/{id}"}, {"POST", "/secrets/{id}/update"},
		{"GET", "/configs"}, {"POST", "/configs/create"}, {"GET", "/configs/{id}"}, {"DELETE", "/configs/{id}"}, {"POST", "/configs/{id}/update"},
		{"PUT", "/volumes/{name}"},
	} {
		t.add(p.method, p.pattern, refuse(errdefs.ErrUnavailable.WithMessage(notManager)))
	}
	noSwarm := unsupported("Slipway does not run swarms: use its Kubernetes API (slipway kubeconfig) for several machines")
	t.add("POST", "/swarm/init", refuse(noSwarm))
	t.add("POST", "/swarm/join", refuse(noSwarm))

	t.add("GET", "/plugins", func(w *reply, r *request) error { return writeJSON(w, http.StatusOK, []struct{}{}) })
	noPlugins := unsupported("Slipway does not run managed plugins")
	for _, p := range []struct{ method, pattern string }{
		{"GET", "/plugins/privileges"}, {"POST", "/plugins/pull"}, {"POST", "/plugins/create"},
		{"POST", "/plugins/{name...}/enable"}, {"POST", "/plugins/{name...}/disable"}, {"POST", "/plugins/{name...}/upgrade"},
		{"POST", "/plugins/{name...}/push"}, {"POST", "/plugins/{name...}/set"},
	} {
		t.add(p.method, p.pattern, refuse(noPlugins))
	}
	t.add("GET", "/plugins/{name...}/json", noPlugin)
	t.add("DELETE", "/plugins/{name...}", noPlugin)

	noSessions := unsupported("BuildKit sessions are not served yet: build with the classic builder (DOCKER_BUILDKIT=0 docker build, or slipway build)")
	t.add("POST", "/session", refuse(noSessions))
	t.add("POST", "/grpc", refuse(noSessions))

	noCheckpoints := unsupported("checkpoints are not supported")
	t.add("GET", "/containers/{id}/checkpoints", refuse(noCheckpoints))
	t.add("POST", "/containers/{id}/checkpoints", refuse(noCheckpoints))
	t.add("DELETE", "/containers/{id}/checkpoints/{checkpoint}", refuse(noCheckpoints))

	t.add("GET", "/images/search", refuse(unsupported("searching registries is not supported: pull images by name")))
	t.add("GET", "/distribution/{name...}/json", refuse(unsupported("looking into a registry is not supported: pull the image")))
}

func refuse(err error) handler {
	return func(*reply, *request) error { return err }
}

func noPlugin(_ *reply, r *request) error {
	return notFound("plugin \"%s\" not found", r.vars["name"])
}
