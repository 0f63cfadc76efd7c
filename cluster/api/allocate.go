package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/uuid"
	core "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// allocateTime bounds one allocation: upstream's interfaces carry no context.
const allocateTime = 10 * time.Second

// addresses gives out service addresses. Taking one is creating the IPAddress object of that
// name, which only one of any number of API servers can do.
type addresses struct {
	objects *store.Store
	prefix  netip.Prefix
	dry     bool
}

var _ ipallocator.Interface = (*addresses)(nil)

func newAddresses(s *store.Store, prefix netip.Prefix) (*addresses, error) {
	if !prefix.IsValid() || prefix.Masked() != prefix {
		return nil, fmt.Errorf("service range %s: it must be a network such as 10.96.0.0/16", prefix)
	}
	if bits := prefix.Addr().BitLen() - prefix.Bits(); bits < 4 {
		return nil, fmt.Errorf("service range %s: too small, at least a /%d is needed", prefix, prefix.Addr().BitLen()-4)
	}
	return &addresses{objects: s, prefix: prefix}, nil
}

// size is the number of addresses, the network's and the broadcast address included.
func (a *addresses) size() uint64 {
	return uint64(1) << min(a.prefix.Addr().BitLen()-a.prefix.Bits(), 32)
}

// nth is the address at an offset from the network's.
func (a *addresses) nth(n uint64) netip.Addr {
	b := a.prefix.Addr().AsSlice()
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// static is how many addresses at the low end are left for those who choose theirs
// (upstream's KEP-3070), as the API's own (.1) and the DNS server's (.10) are.
func (a *addresses) static() uint64 { return min(max(16, a.size()/16), 256, a.size()/2) }

func (a *addresses) Allocate(ip net.IP) error {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if !ok || !a.prefix.Contains(addr) || addr == a.prefix.Addr() || addr == a.nth(a.size()-1) {
		return &ipallocator.ErrNotInRange{IP: ip, ValidRange: a.prefix.String()}
	}
	return a.take(addr)
}

func (a *addresses) take(addr netip.Addr) error {
	if a.has(addr) {
		return ipallocator.ErrAllocated
	}
	if a.dry {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), allocateTime)
	defer cancel()
	_, err := a.objects.Create(ctx, kinds.IPAddresses, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{
		Name: addr.String(), UID: uuid.NewUUID(), CreationTimestamp: metav1.Now(), Generation: 1,
		Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: string(a.IPFamily()),
			networkingv1.LabelManagedBy:       ipallocator.ControllerName,
		},
	}})
	if apierrors.IsAlreadyExists(err) {
		return ipallocator.ErrAllocated
	}
	return err
}

func (a *addresses) AllocateNext() (net.IP, error) {
	low, size := a.static(), a.size()
	if addr, err := a.search(low, size-1); err == nil || !errors.Is(err, ipallocator.ErrFull) {
		return addr, err
	}
	return a.search(1, low)
}

// search takes a free address between two offsets, from a random one on.
func (a *addresses) search(from, to uint64) (net.IP, error) {
	n := to - from
	start := rand.Uint64N(n)
	for i := range n {
		addr := a.nth(from + (start+i)%n)
		switch err := a.take(addr); {
		case err == nil:
			return addr.AsSlice(), nil
		case !errors.Is(err, ipallocator.ErrAllocated):
			return nil, err
		}
	}
	return nil, ipallocator.ErrFull
}

func (a *addresses) Release(ip net.IP) error {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || a.dry {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), allocateTime)
	defer cancel()
	_, err := a.objects.Delete(ctx, kinds.IPAddresses, "", addr.Unmap().String(), store.Preconditions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (a *addresses) has(addr netip.Addr) bool {
	_, ok := a.objects.Snapshot(kinds.IPAddresses).Get("", addr.String())
	return ok
}

func (a *addresses) Has(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	return ok && a.has(addr.Unmap())
}

func (a *addresses) ForEach(fn func(net.IP)) {
	for o := range a.objects.Snapshot(kinds.IPAddresses).All("") {
		if addr, err := netip.ParseAddr(o.GetName()); err == nil && a.prefix.Contains(addr) {
			fn(addr.AsSlice())
		}
	}
}

func (a *addresses) CIDR() net.IPNet {
	return net.IPNet{IP: a.prefix.Addr().AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.prefix.Addr().BitLen())}
}

func (a *addresses) IPFamily() core.IPFamily {
	if a.prefix.Addr().Is4() {
		return core.IPv4Protocol
	}
	return core.IPv6Protocol
}

func (a *addresses) Destroy()       {}
func (a *addresses) EnableMetrics() {}

func (a *addresses) DryRun() ipallocator.Interface {
	return &addresses{objects: a.objects, prefix: a.prefix, dry: true}
}

// repair gives back what a crash left taken: addresses of no service, and takes what services have.
func (a *addresses) repair(ctx context.Context) error {
	used := map[string]bool{}
	for _, svc := range store.List[*corev1.Service](a.objects, kinds.Services, "") {
		for _, ip := range svc.Spec.ClusterIPs {
			used[ip] = true
		}
	}
	var errs []error
	for o := range a.objects.Snapshot(kinds.IPAddresses).All("") {
		if !used[o.GetName()] && o.GetLabels()[networkingv1.LabelManagedBy] == ipallocator.ControllerName {
			_, err := a.objects.Delete(ctx, kinds.IPAddresses, "", o.GetName(), store.Preconditions{})
			errs = append(errs, err)
		}
	}
	for ip := range used {
		if addr, err := netip.ParseAddr(ip); err == nil && a.prefix.Contains(addr) && !a.has(addr) {
			errs = append(errs, a.take(addr))
		}
	}
	return errors.Join(errs...)
}

// ports gives out node ports. Which are taken is a bitmap in one object, changed only against
// the version it was read at.
type ports struct {
	objects *store.Store
	span    utilnet.PortRange
}

var _ portallocator.Interface = (*ports)(nil)

func newPorts(s *store.Store, span utilnet.PortRange) *ports { return &ports{s, span} }

// portsName is the one object's.
const portsName = "servicenodeports"

func (p *ports) bitmap() []byte {
	if r, ok := store.Get[*corev1.RangeAllocation](p.objects, kinds.RangeAllocations, "", portsName); ok && r.Range == p.span.String() {
		return r.Data
	}
	return nil
}

func taken(bits []byte, i int) bool { return i/8 < len(bits) && bits[i/8]&(1<<(i%8)) != 0 }

// change edits the bitmap; edit says what is wrong with doing so.
func (p *ports) change(edit func(bits []byte) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), allocateTime)
	defer cancel()
	size := (p.span.Size + 7) / 8
	for {
		_, err := store.Edit(ctx, p.objects, kinds.RangeAllocations, "", portsName, func(r *corev1.RangeAllocation) error {
			if r.Range != p.span.String() || len(r.Data) != size {
				r.Range, r.Data = p.span.String(), make([]byte, size)
			}
			return edit(r.Data)
		})
		if !apierrors.IsNotFound(err) {
			return err
		}
		_, err = p.objects.Create(ctx, kinds.RangeAllocations, &corev1.RangeAllocation{
			ObjectMeta: metav1.ObjectMeta{Name: portsName, UID: uuid.NewUUID(), CreationTimestamp: metav1.Now()},
			Range:      p.span.String(), Data: make([]byte, size),
		})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
}

func (p *ports) Allocate(port int) error {
	if !p.span.Contains(port) {
		return &portallocator.ErrNotInRange{ValidPorts: p.span.String()}
	}
	i := port - p.span.Base
	return p.change(func(bits []byte) error {
		if taken(bits, i) {
			return portallocator.ErrAllocated
		}
		bits[i/8] |= 1 << (i % 8)
		return nil
	})
}

// staticPorts is the low end left for those who choose their port, as upstream.
func (p *ports) staticPorts() int { return min(max(16, p.span.Size/32), 128, p.span.Size/2) }

func (p *ports) AllocateNext() (int, error) {
	port := 0
	err := p.change(func(bits []byte) error {
		i := p.free(bits, p.staticPorts(), p.span.Size)
		if i < 0 {
			i = p.free(bits, 0, p.staticPorts())
		}
		if i < 0 {
			return portallocator.ErrFull
		}
		bits[i/8] |= 1 << (i % 8)
		port = p.span.Base + i
		return nil
	})
	return port, err
}

func (p *ports) free(bits []byte, from, to int) int {
	n := to - from
	if n <= 0 {
		return -1
	}
	start := rand.IntN(n)
	for k := range n {
		if i := from + (start+k)%n; !taken(bits, i) {
			return i
		}
	}
	return -1
}

func (p *ports) Release(port int) error {
	if !p.span.Contains(port) {
		return nil
	}
	i := port - p.span.Base
	return p.change(func(bits []byte) error {
		bits[i/8] &^= 1 << (i % 8)
		return nil
	})
}

func (p *ports) Has(port int) bool {
	return p.span.Contains(port) && taken(p.bitmap(), port-p.span.Base)
}

func (p *ports) ForEach(fn func(int)) {
	bits := p.bitmap()
	for i := range p.span.Size {
		if taken(bits, i) {
			fn(p.span.Base + i)
		}
	}
}

func (p *ports) Destroy()       {}
func (p *ports) EnableMetrics() {}

// repair makes the bitmap what the services say.
func (p *ports) repair() error {
	want := make([]byte, (p.span.Size+7)/8)
	for _, svc := range store.List[*corev1.Service](p.objects, kinds.Services, "") {
		used := []int32{svc.Spec.HealthCheckNodePort}
		for _, sp := range svc.Spec.Ports {
			used = append(used, sp.NodePort)
		}
		for _, n := range used {
			if p.span.Contains(int(n)) {
				i := int(n) - p.span.Base
				want[i/8] |= 1 << (i % 8)
			}
		}
	}
	if string(p.bitmap()) == string(want) {
		return nil
	}
	return p.change(func(bits []byte) error { copy(bits, want); return nil })
}
