package service

import (
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// nameIndex finds services by what their names do not say: aliases and addresses.
type nameIndex struct {
	mu      sync.RWMutex
	aliases map[string]string     // namespace/alias, lower case -> namespace/name
	addrs   map[netip.Addr]string // cluster address -> namespace/name
	of      map[string]named      // namespace/name -> what it entered
}

type named struct {
	aliases []string
	addrs   []netip.Addr
}

func (x *nameIndex) reset() {
	x.aliases, x.addrs, x.of = map[string]string{}, map[netip.Addr]string{}, map[string]named{}
}

// set enters a service as it is now; nil removes it.
func (x *nameIndex) set(key string, svc *corev1.Service) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, a := range x.of[key].aliases {
		if x.aliases[a] == key {
			delete(x.aliases, a)
		}
	}
	for _, a := range x.of[key].addrs {
		if x.addrs[a] == key {
			delete(x.addrs, a)
		}
	}
	delete(x.of, key)
	if svc == nil {
		return
	}
	now := named{addrs: virtual(svc)}
	for alias := range strings.SplitSeq(svc.Annotations[DNSAliases], ",") {
		if alias = strings.ToLower(strings.TrimSpace(alias)); alias != "" {
			now.aliases = append(now.aliases, svc.Namespace+"/"+alias)
		}
	}
	for _, a := range now.aliases {
		x.aliases[a] = key
	}
	for _, a := range now.addrs {
		x.addrs[a] = key
	}
	if len(now.aliases)+len(now.addrs) > 0 {
		x.of[key] = now
	}
}

func (x *nameIndex) byAlias(namespace, alias string) (name string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	key, ok := x.aliases[namespace+"/"+alias]
	_, name = split(key)
	return name, ok
}

func (x *nameIndex) byAddr(a netip.Addr) (key string, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	key, ok = x.addrs[a]
	return key, ok
}
