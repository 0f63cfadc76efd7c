// Package image owns the images of one machine: their content, their names and the
// directories that their layers are unpacked into.
//
// It is built from containerd's own packages, run in process: the local content store
// for manifests and configurations (and for blobs that a registry client pushed), the
// overlay snapshotter for layer directories, and the metadata database, whose records
// decide what the garbage collector keeps.
//
// # Identity
//
// A layer lives as a directory, not as a tar. While the directory is written, once, the
// tar's headers and padding are kept beside it (see headerStream), so that OpenLayer
// regenerates the very same bytes for as long as the directory exists. A local manifest
// lists those uncompressed layers, and the manifest's digest is the image's id. A push to
// another machine makes a second, compressed manifest, recorded as a repo digest. An
// image that was pushed into the built-in registry keeps the manifest it came with.
//
// # Names
//
// Every name is a record in the metadata database whose target is a manifest; an image
// exists while a record names it. Records have four shapes:
//
//	docker.io/library/web:latest        a tag
//	docker.io/library/web@sha256:…      a repo digest: what a registry calls this image
//	<none>@sha256:…                     an image that lost its last tag
//	@registry/web:latest, …@sha256:…    what the built-in registry serves
//
// The records are mirrored in memory: reads never touch the disk.
//
// # Durability
//
// Files of layers are written without syncing; one syncfs per operation, before the first
// name is written, makes all of them durable at once. A name on disk therefore never
// refers to a layer that is not. Operations hold a lease while they work, so that the
// collector, which runs when the store is idle, leaves unfinished work alone.
//
// Everything that arrives from outside (archives, layers, manifests) is hostile until its
// digest is checked; extraction cannot leave its directory. This package knows nothing
// about containers, except that the container records kept in the same database are
// roots for the collector.
package image
