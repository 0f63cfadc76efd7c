// Package service connects the pods of one node with the rest: virtual addresses and
// balancing, network policy, and the cluster's DNS.
//
// It reads the store and programs the kernel. Packets to a service are translated by
// nftables maps to a random ready endpoint; this process is not on their path, and
// goes on being right after it was killed. All rules are in one table of ours,
// slipway-<instance>-svc, kept as a model: each change of the store becomes one
// transaction with only the differences.
//
// What a service or a policy needs is worked out by pure functions (planService,
// compilePolicy); the Server applies it. A pod's first packet finds its policies in
// place: its address passes nothing until Admit has programmed them.
//
// The DNS server answers from the store's snapshot, on sockets that it is given and
// that outlive the daemon.
//
// This package never touches containers or network interfaces. Host ports are held by
// somebody else (PortReserver) before a rule for them exists.
package service
