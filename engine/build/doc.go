// Package build turns a Dockerfile and its context into an image.
//
// The context is unpacked once per content (buildcontext). BuildKit's Dockerfile front
// end, linked in, asks a gateway for the files and base image configurations it needs and
// answers with a graph of operations over the stages that the target needs. BuildKit's
// solver runs the graph: independent branches at once, each vertex at most once over all
// builds in flight, and not at all when a cache key, computed from the operation and the
// content it reads, is known. What a vertex does is package op; what it leaves is a
// snapshot, whose layer is the image store's own. At the end one flush makes the layers
// durable, then the image's configuration and manifest are written, then its names: a
// build that fails or is killed leaves no name.
//
// A cached step keeps the time at which it first ran, so an unchanged rebuild gives the
// same image, byte for byte, and writes nothing.
//
// The package knows no client protocol. Front doors pass a Request and a Progress;
// package progress has one that writes the classic stream of `docker build`.
package build
