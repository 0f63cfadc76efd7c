// Command minimal is the API over a store and nothing else, to weigh them: it prints how long
// it took until it was ready, and its resident and anonymous memory then, and again after a
// line on standard input. "minimal DIR" keeps objects in memory, "minimal DIR etcd" in etcd.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"slipway.dev/slipway/cluster/api"
	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func main() {
	began := time.Now()
	dir := os.Args[1]
	ctx := context.Background()
	backend := store.Memory()
	if len(os.Args) > 2 {
		backend = store.Etcd(store.EtcdOptions{Dir: filepath.Join(dir, "etcd")})
	}
	s, err := store.Open(ctx, store.Options{Kinds: kinds.All(), Backend: backend, Default: api.Default})
	check(err)
	opened := time.Since(began)
	prefix := netip.MustParsePrefix("10.96.0.0/16")
	ca, err := auth.OpenAuthority(filepath.Join(dir, "pki"), auth.Names{})
	check(err)
	pki := time.Since(began)
	srv, err := api.New(ctx, api.Options{Store: s, Authority: ca, ServiceRange: prefix})
	check(err)
	made := time.Since(began)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	go srv.Serve(l)
	<-srv.Ready()
	ready := time.Since(began)
	check(ca.WriteKubeconfig(filepath.Join(dir, "kubeconfig"), "https://"+l.Addr().String()))
	fmt.Printf("start: store %v, keys %v, made %v, ready %v after main (process start %v)\n", opened, pki, made, ready, sinceExec())
	memory("ready")
	debug.FreeOSMemory()
	memory("ready, memory given back")
	bufio.NewReader(os.Stdin).ReadString('\n')
	debug.FreeOSMemory()
	memory("after use")
	check(srv.Close(ctx))
	check(s.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func memory(when string) {
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	var parts []string
	for line := range strings.Lines(string(status)) {
		for _, k := range []string{"VmRSS", "RssAnon", "RssFile"} {
			if strings.HasPrefix(line, k) {
				parts = append(parts, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	fmt.Println(when+":", strings.Join(parts, ", "))
}

// sinceExec is how long ago the process began, init functions included.
func sinceExec() time.Duration {
	stat, err := os.ReadFile("/proc/self/stat")
	check(err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int64
	fmt.Sscan(fields[19], &ticks)
	uptime, err := os.ReadFile("/proc/uptime")
	check(err)
	var up float64
	fmt.Sscan(string(uptime), &up)
	return time.Duration((up - float64(ticks)/100) * float64(time.Second)).Round(time.Millisecond)
}
