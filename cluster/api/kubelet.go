package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// DialNode opens a connection to the kubelet API of a node. For the node of this process it
// is a Loopback's Dial: logs, exec, attach and port-forward take the same way everywhere.
type DialNode func(ctx context.Context, node string) (net.Conn, error)

// kubelets tells upstream's pod subresources how to reach a node: plain HTTP over whatever
// connection DialNode gives. What is dialled is private to the process or secured by it.
type kubelets struct {
	dial DialNode
	objs store.Reader

	mu         sync.Mutex
	transports map[string]*http.Transport // by node, so that idle connections are not shared between nodes
}

var _ kubeletclient.ConnectionInfoGetter = (*kubelets)(nil)

func (k *kubelets) GetConnectionInfo(_ context.Context, name types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	node := string(name)
	if _, ok := store.Get[*corev1.Node](k.objs, kinds.Nodes, "", node); !ok {
		return nil, apierrors.NewNotFound(kinds.Nodes, node)
	}
	if k.dial == nil {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %s: this API server has no way to its kubelet", node))
	}
	tr := k.transport(node)
	return &kubeletclient.ConnectionInfo{
		Scheme: "http", Hostname: node, Port: "10250", Transport: tr, InsecureSkipTLSVerifyTransport: tr,
	}, nil
}

func (k *kubelets) transport(node string) *http.Transport {
	k.mu.Lock()
	defer k.mu.Unlock()
	tr, ok := k.transports[node]
	if !ok {
		tr = &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return k.dial(ctx, node) },
			MaxIdleConnsPerHost: 2,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		}
		k.transports[node] = tr
	}
	return tr
}

func (k *kubelets) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, tr := range k.transports {
		tr.CloseIdleConnections()
	}
}

// endpointReader finds the endpoints behind a service for the service proxy.
type endpointReader struct{ objs store.Reader }

func (e *endpointReader) GetEndpointSlices(namespace, name string) ([]*discoveryv1.EndpointSlice, error) {
	return store.Indexed[*discoveryv1.EndpointSlice](e.objs, kinds.EndpointSlices, kinds.ByService, namespace+"/"+name), nil
}

// Loopback is a listener inside the process: what is dialled is accepted. It carries the
// kubelet API of the local node. Connections are socket pairs, because the two sides of an
// unbuffered pipe can wait for each other for ever when both write.
type Loopback struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

var _ net.Listener = (*Loopback)(nil)

// NewLoopback is an open Loopback.
func NewLoopback() *Loopback {
	return &Loopback{accept: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to whoever accepts. It has DialNode's form and serves for every node name.
func (l *Loopback) Dial(ctx context.Context, _ string) (net.Conn, error) {
	ours, theirs, err := connPair()
	if err != nil {
		return nil, err
	}
	select {
	case l.accept <- theirs:
		return ours, nil
	case <-l.closed:
		err = net.ErrClosed
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	ours.Close()
	theirs.Close()
	return nil, fmt.Errorf("dial the local node: %w", err)
}

// Accept waits for the next Dial.
func (l *Loopback) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; open connections stay.
func (l *Loopback) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr names the listener.
func (l *Loopback) Addr() net.Addr { return &net.UnixAddr{Name: "loopback", Net: "unix"} }

func connPair() (ours, theirs net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	if ours, err = fileConn(fds[0]); err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	if theirs, err = fileConn(fds[1]); err != nil {
		ours.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// fileConn takes the descriptor over.
func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "loopback")
	defer f.Close() // FileConn has a descriptor of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connection of a socket pair: %w", err)
	}
	return c, nil
}
