// Package run runs the programs of RUN instructions in containers, through the warden.
//
// A step's container has what Docker gives one by default: namespaces of its own, the
// default capabilities and seccomp profile, masked paths, and for the network either a
// place on the default bridge with the resolver every container there has, nothing, or
// the host's. It is tied to the daemon's connection: when the daemon dies, so does the
// step. Its root is an overlay that the warden mounts where nobody else sees it; the
// daemon only looks at the upper directory, before the start and after the end.
//
// Mount points that the runtime makes in the root (for /etc/hosts and for --mount) are no
// part of the layer: they are taken out again when the step left them empty.
package run
