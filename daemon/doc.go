// Package daemon puts one node together: it is the only room that knows all the others.
//
// Run opens the engine (warden, images, networks, volumes, containers, builder), the cluster (store,
// API, controllers, scheduler, node agent, services) and the front doors, in the order in which they
// need one another and at once where they do not, and closes them in reverse. It holds no state of its
// own but the record of what runs (daemon.json) and a lock on the data directory.
//
// Listening sockets live in the warden's descriptor store: when this process dies, connections and
// queries wait in the kernel until the next one takes the sockets back.
package daemon
