// Package warden keeps containers alive while the daemon comes and goes.
//
// One warden process runs per data directory. It is the parent of every container: it creates them with
// runc's libcontainer, holds their standard streams, writes their logs, waits for them by pidfd and remembers how
// they ended until the daemon has acknowledged it. It decides nothing: no restart policy, no names, no networks.
//
// This package is the protocol and the daemon's side of it, the Client. It must not import libcontainer: the daemon
// links none of it. The other side is engine/warden/server, linked into cmd/slipway-warden only.
//
// Neither side trusts the other to live. The Client holds a duplicate of every descriptor that the warden holds
// (standard streams, terminals, pidfds, namespaces, and the named descriptors of Keep); the warden gives them back to a
// daemon that lost its memory, and a Client that finds the warden dead starts a new one and hands everything over.
// Containers run on through both, their output stays in the kernel's pipes, and their exit codes are still read:
// from waitid while they are the warden's children, from PIDFD_GET_INFO (Linux 6.15) when they no longer are.
//
// The wire is a unix stream socket: frames of JSON with descriptors attached (see Message), versioned so that a
// warden survives an upgrade of the daemon. Streams of an attached process travel over a socket pair of their own.
package warden
