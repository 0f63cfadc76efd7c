// Package controller is what all controllers share; each one is a folder below.
//
// A controller is a reflex: events about objects become keys, keys are worked off one at a
// time each, and working off a key means looking at the newest state, deciding in pure
// code what is missing, and writing that. Nothing is polled. State is read in place from
// a store.Reader and changed through a store.Writer that speaks as the controller's own
// service account, so quotas, policies and audit hold for what controllers create.
//
// A writer answers after its write can be read, so a controller that looks again sees
// everything it did before: there are no expectations to keep and no caches to wait for.
//
// Package builtin wires the controllers of a cluster, in one visible place.
package controller
