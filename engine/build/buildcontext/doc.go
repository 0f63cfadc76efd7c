// Package buildcontext turns the archive that a client sends with a build into a
// directory that the build may read.
//
// A context is untrusted input. It is spooled to disk while its bytes are hashed, and
// that hash is its name: a context seen before is not unpacked again, which is most of
// what makes an unchanged rebuild quick. A new one is extracted into a private
// directory by Extract, which refuses names that leave the directory, entries below
// symbolic links, links to what is not there, device nodes, and archives beyond the
// limits on size, count and compression ratio. Every regular file is hashed while it is
// written and the result is kept beside the tree as an Index, so that the cache key of
// a COPY is computed from memory, without reading a file a second time.
//
// Trees are never changed after extraction; builds hold a reference while they use one,
// and the store drops the least recently used when it outgrows its limit.
//
// Extract is also what ADD uses for local archives, with Options that keep owners and
// allow device nodes as an image layer would.
package buildcontext
