// Package snapshot holds what build operations read and produce: immutable file trees.
//
// A Snapshot is either a chain of layers in the image store or a view of an uploaded
// build context. Operations read it through Open, as one directory, and make new ones
// with a Draft, an overlay whose upper directory becomes a layer when it is committed.
// Nothing is ever copied, exported or unpacked in between: the layer that a RUN leaves is
// the layer of the image.
//
// The Store is also the solver's result storage. A record per result says which chain or
// view it is, when it was made and when it was last used; records survive the daemon. A
// record written before its layers were flushed to disk is believed only until the
// machine restarts, so that a power cut costs cache hits and never correctness. Chains
// are kept from the image store's collector by one lease for as long as a record names
// them; Prune and the size bound drop records, least recently used first.
package snapshot
