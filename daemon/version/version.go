// Package version says which Slipway this is.
package version

// Version is the release, or what git describes the source as; the linker sets it.
var Version = "development"

// Kubernetes is the release whose API is served, and whose libraries give it its meaning.
const Kubernetes = "v1.37.2"
