package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/cluster/api"
	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/builtin"
	"slipway.dev/slipway/cluster/controller/volume"
	"slipway.dev/slipway/cluster/node"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/service"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/daemon/version"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/image"
)

// clusterDomain is what the names of services end in.
const clusterDomain = "cluster.local"

// cluster is the wing of desired state.
type cluster struct {
	store     *store.Store
	authority *auth.Authority
	api       *api.Server
	services  *service.Server
	node      *node.Agent
}

// openStore opens what is durable of the cluster. It needs nothing of the engine and runs beside it.
func (d *daemon) openStore(ctx context.Context) (err error) {
	d.cluster.store, err = store.Open(ctx, store.Options{
		Kinds: kinds.All(), Backend: store.Etcd(store.EtcdOptions{Dir: filepath.Join(d.DataDir, "etcd")}),
		Log: d.Log.With("room", "store"), Default: api.Default, HistoryAge: historyAge,
	})
	return err
}

// openCluster serves the Kubernetes API and starts all that acts on it.
func (d *daemon) openCluster(ctx context.Context) error {
	c := &d.cluster
	if err := d.openAPI(ctx); err != nil {
		return fmt.Errorf("kubernetes API: %w", err)
	}
	// The bootstrap roles come first: everything below is allowed by them.
	select {
	case <-c.api.Ready():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	d.events = record.NewSink(d.Log.With("room", "events"))
	d.run(ctx, "event recorder", d.events.Run)
	if err := d.openServices(ctx); err != nil {
		return fmt.Errorf("services: %w", err)
	}
	d.openControllers(ctx)
	if err := d.openNode(ctx); err != nil {
		return fmt.Errorf("node agent: %w", err)
	}
	return nil
}

// openServices programs virtual addresses and policies, and answers the cluster's names.
func (d *daemon) openServices(ctx context.Context) error {
	c, networks := &d.cluster, d.engine.networks
	udp, tcp, err := networks.ListenDNS(ctx)
	if err != nil {
		return err
	}
	c.services, err = service.New(service.Options{
		Reader: c.store, Writer: c.api.Client().As("system:serviceaccount:kube-system:service-controller"),
		Instance: d.instance, NodeName: d.node, NodeAddr: networks.NodeAddr(), PodRange: networks.PodRange(), ServiceRange: networks.ServiceRange(),
		DNSAddr: networks.DNSAddr(), Ports: networks, Domain: clusterDomain, DNSUDP: udp, DNSTCP: tcp, Upstream: networks, Log: d.Log.With("room", "service"),
	})
	if err != nil {
		return err
	}
	d.run(ctx, "services", c.services.Run)
	return nil
}

// openControllers starts the reflexes and the scheduler.
func (d *daemon) openControllers(ctx context.Context) {
	c := &d.cluster
	all := builtin.All(builtin.Options{
		Deps:  controller.Deps{Reader: c.store, Writer: c.api.Client(), Events: d.events, Log: d.Log.With("room", "controller")},
		Kinds: kinds.All(), RootCA: c.authority.CA(),
		Volumes: volume.Directory{Root: filepath.Join(d.DataDir, "claims"), Node: d.node},
	})
	d.run(ctx, "controllers", func(ctx context.Context) error { return builtin.Run(ctx, all) })
}

func (d *daemon) openAPI(ctx context.Context) (err error) {
	c, networks := &d.cluster, d.engine.networks
	address := net.JoinHostPort("0.0.0.0", strconv.Itoa(d.APIPort))
	if d.api, err = d.listen(ctx, "api", "tcp", address); err != nil {
		return err
	}
	serviceIP := api.ServiceIP(networks.ServiceRange())
	c.authority, err = auth.OpenAuthority(filepath.Join(d.DataDir, "pki"), auth.Names{
		Hosts: []string{d.node}, IPs: []net.IP{networks.NodeAddr().AsSlice(), serviceIP.AsSlice()}})
	if err != nil {
		return err
	}
	audit, err := auth.OpenAudit(auth.AuditOptions{Path: filepath.Join(d.DataDir, "audit.log"), Log: d.Log})
	if err != nil {
		return err
	}
	d.closers.add("audit log", func(context.Context) error { return audit.Close() })
	kubelet := api.NewLoopback()
	d.kubelet = kubelet
	c.api, err = api.New(ctx, api.Options{
		Store: c.store, Authority: c.authority, Audit: audit, Log: d.Log.With("room", "api"), ServiceRange: networks.ServiceRange(),
		Endpoint: netip.AddrPortFrom(networks.NodeAddr(), uint16(port(d.api))), DialNode: kubelet.Dial,
	})
	if err != nil {
		return err
	}
	d.tasks.Go("kubernetes API", func() {
		if err := c.api.Serve(d.api); err != nil && !errors.Is(err, http.ErrServerClosed) {
			d.failed(fmt.Errorf("kubernetes API: %w", err))
		}
	})
	d.closers.add("kubernetes API", c.api.Close)
	return c.authority.WriteKubeconfig(filepath.Join(d.RunDir, "kubeconfig"), "https://127.0.0.1:"+strconv.Itoa(port(d.api)))
}

// openNode starts the agent that runs this machine's pods, and its kubelet API on the loopback.
func (d *daemon) openNode(ctx context.Context) (err error) {
	c, e := &d.cluster, &d.engine
	client := c.api.Client()
	c.node, err = node.New(node.Options{
		Name: d.node, Instance: d.instance, Dir: d.DataDir, RunDir: d.RunDir, Version: version.Kubernetes + "+slipway",
		Reader: c.store, Writer: client.As("system:node:" + d.node), Tokens: tokens{client},
		Containers: e.containers, Sandboxes: e.warden, Networks: e.networks, Images: e.images, Pull: d.pull, Events: e.events, Policy: c.services, Record: d.events,
		NodeAddr: e.networks.NodeAddr(), DNSAddr: e.networks.DNSAddr(), ClusterDomain: clusterDomain, Log: d.Log.With("room", "node"),
	})
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: c.node.Handler(), ReadHeaderTimeout: 30 * time.Second}
	d.tasks.Go("kubelet API", func() { srv.Serve(d.kubelet) })
	d.closers.add("kubelet API", func(context.Context) error { return srv.Close() })
	d.run(ctx, "node agent", c.node.Run)
	return nil
}

// run keeps a part going until the daemon stops; the daemon does not go on without it.
func (d *daemon) run(ctx context.Context, name string, part func(context.Context) error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	d.tasks.Go(name, func() {
		defer close(done)
		if err := part(ctx); ctx.Err() == nil {
			d.failed(fmt.Errorf("%s ended: %w", name, err))
		}
	})
	d.closers.add(name, func(stop context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-stop.Done():
			return errors.New("it did not end in time")
		}
	})
}

// pull fetches an image for a pod.
func (d *daemon) pull(ctx context.Context, ref string, auth func(host string) (user, password string)) error {
	_, err := d.engine.images.Pull(ctx, ref, image.PullOptions{Owner: container.OwnerNode, Auth: func(host string) (string, string, error) {
		user, password := auth(host)
		return user, password, nil
	}})
	return err
}

// tokens asks the API for a pod's service account tokens, as a kubelet would.
type tokens struct{ client *api.Client }

// Token is node.TokenSource's.
func (t tokens) Token(ctx context.Context, pod *corev1.Pod, audiences []string, lifetime time.Duration) (string, time.Time, error) {
	seconds := int64(lifetime / time.Second)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: audiences, ExpirationSeconds: &seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	out, err := t.client.ActAs("system:node:"+pod.Spec.NodeName).Token(ctx, pod.Namespace, account, req)
	if err != nil {
		return "", time.Time{}, err
	}
	return out.Status.Token, out.Status.ExpirationTimestamp.Time, nil
}
