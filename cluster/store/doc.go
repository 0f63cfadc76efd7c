// Package store holds every API object of a cluster, in memory, versioned and watchable.
//
// One table per resource keeps the newest version of each object in a copy-on-write
// tree. Readers take a Snapshot: one atomic load, no lock, no copy, never a wait for a
// writer or for a disk. What happened lately is kept in one bounded history per
// resource; a watch is a Cursor into it, so a slow watcher costs nothing and, when the
// history has moved on, is told ErrTooOld and lists again. Follow does that by itself.
//
// Objects are frozen. A write hands its object over to the store; from then on nobody
// changes it, and everybody (controllers, the scheduler, the API's encoders) reads that
// one copy in place. Whoever wants to change an object copies it first: see Edit. With
// Options.Detector the store proves that nobody cheats.
//
// A write concerns exactly one object and is conditional on the version it saw. It is
// visible to readers only after it has been committed, in the order of revisions, and
// to its own writer before the call returns. Three back ends fill the same tables:
//
//	Memory   assigns revisions itself; tests and simulations
//	Etcd     a resource version is etcd's mod revision: durable, one object per transaction
//	Mirror   read-only, from somebody else's list and watch, with their versions
//
// Kinds marked Volatile (node leases, events) never touch the back end: they live in a
// keyspace of their own, in memory, bounded by age and by count, whose revisions start at
// the clock's microseconds so that they never go back.
//
// The store knows nothing of users, admission, validation or HTTP: that is cluster/api,
// which must not be imported from here.
package store
