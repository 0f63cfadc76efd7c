// Package op holds the operations that a Dockerfile is made of, as the solver runs them.
//
// BuildKit's front end turns a Dockerfile into LLB, a graph of a few kinds of operation;
// BuildKit's solver schedules the graph, shares work between builds and asks for cache
// keys. This package is what happens at each vertex: Source brings a base image, a build
// context or a download; File copies, makes and removes; Exec runs a program. Each says
// what its cache key is (CacheMap) and does its work on snapshots (Exec).
//
// The digests of operations are computed field for field as BuildKit's own worker does,
// so that caches can be exchanged with it. What the front end sends is trusted to be well
// formed only as far as Load checks it; file names in it, and everything inside images
// and contexts, are hostile and resolved inside their roots.
package op
