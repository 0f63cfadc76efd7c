// Package api serves the Kubernetes API over a store.
//
// # What runs whose code
//
// What a write means is upstream's: its REST storages (k8s.io/kubernetes/pkg/registry/…) with
// their strategies, defaults, validation, graceful deletion, finalizers, generated names,
// dry run, service addresses, eviction and tokens, called by its request handlers
// (k8s.io/apiserver/pkg/endpoints/handlers) with its patch types, managed fields and
// server-side apply. Underneath is one storage.Interface for all of them: adapter.
//
// What runs is ours: the HTTP pipeline, get, list and watch (reader, stream), discovery,
// admission, and the in-process client. Reads come from the store's snapshots and cursors,
// whose objects are frozen and everybody's; none of it is converted, and nothing writes to it.
// At the border to upstream every object is copied, because upstream writes into what it is
// given and its fast conversions share memory.
//
// # How a request flows
//
//	TLS -> record -> who (auth) -> as whom -> may (RBAC) -> resource and verb
//	  get, list, watch: snapshot or cursor -> selection -> form (JSON, protobuf, YAML; object,
//	      metadata, table) -> client
//	  the rest: decode -> default -> managed fields -> admission -> strategy -> adapter -> store
//	  exec, attach, port-forward, log: upstream's translators -> the node's kubelet API
//
// A controller's write (Client) joins after "who". It carries no encoding, and what it creates
// has no managed fields.
//
// # What it never does
//
// It holds no second copy of any object, no informer, no poll loop. It decides nothing about
// pods, nodes or endpoints: those are the controllers'. It does not know whether the store is
// durable. It does not import k8s.io/apiserver/pkg/server.
package api
