// Package network connects containers and pods on one machine.
//
// A Docker network is a Linux bridge. Attach gives a network namespace a veth on
// it, an address of its own, a default route, names that the other containers of
// the network resolve, and the host ports that were asked for. A pod gets a
// routed point-to-point veth instead (AttachPod), so that every packet it sends
// crosses the IP hooks, with and without br_netfilter.
//
// All packet rules of one data directory live in one nftables table,
// slipway-<instance>. Its rules are written once; afterwards a container is a
// handful of map elements. The table never accepts what another table drops:
// where another tool dropped forwarded traffic, hostFirewall asks that tool, in
// its own language, to let ours through.
//
// Names are answered by a resolver of ours on each network's gateway. A container
// sees it as 127.0.0.11, translated inside its namespace, and knows nothing of us.
// The resolver's sockets, like the sockets that hold published ports, are kept in
// a descriptor store outside this process: a killed daemon loses no query and
// gives no port away.
//
// What is on disk: networks (synced, they are promises) and endpoints (not synced:
// they describe kernel state, which dies with the machine). Open compares both
// with the kernel and repairs the kernel; it never repairs by guessing.
//
// This package knows nothing of images, processes or clusters.
package network
