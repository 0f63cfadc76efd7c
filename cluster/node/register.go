package node

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// The node's signs of life, with the kubelet's figures.
const (
	leaseSeconds   = 40
	leaseEvery     = 10 * time.Second
	statusEvery    = 5 * time.Minute
	leaseNamespace = "kube-node-lease"
	maxPods        = 110

	conflictPause = 20 * time.Millisecond // until this node's view has the write that was in the way
)

// machineCapacity is what this machine has to give; memory is repeated in bytes.
func machineCapacity() (corev1.ResourceList, int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	memory := int64(info.Totalram) * int64(info.Unit)
	list := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err == nil {
		list[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(int64(fs.Blocks)*fs.Bsize, resource.BinarySI)
	}
	return list, memory, nil
}

// register creates or updates the Node object.
func (a *Agent) register(ctx context.Context) error {
	want := a.nodeObject()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		have, ok := store.Get[*corev1.Node](a.Reader, kinds.Nodes, "", a.Name)
		if !ok {
			made, err := a.Writer.Create(ctx, want)
			if err == nil {
				next := store.Copy(made.(*corev1.Node))
				next.Status = want.Status
				_, err = a.Writer.UpdateStatus(ctx, next)
			}
			if !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) {
				return wrap("register node", err)
			}
			pause(ctx, conflictPause)
			continue
		}
		next := store.Copy(have)
		if next.Labels == nil {
			next.Labels = map[string]string{}
		}
		for k, v := range want.Labels {
			next.Labels[k] = v
		}
		made, err := a.Writer.Update(ctx, next)
		if err == nil {
			next = store.Copy(made.(*corev1.Node))
			mergeNodeStatus(&next.Status, want.Status)
			_, err = a.Writer.UpdateStatus(ctx, next)
		}
		if !apierrors.IsConflict(err) {
			return wrap("register node", err)
		}
		pause(ctx, conflictPause)
	}
}

func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", op, err)
}

// mergeNodeStatus takes the agent's part of the status and leaves conditions of others alone.
func mergeNodeStatus(st *corev1.NodeStatus, want corev1.NodeStatus) {
	old := st.Conditions
	*st = want
	for i := range st.Conditions {
		for _, o := range old {
			if o.Type == st.Conditions[i].Type && o.Status == st.Conditions[i].Status {
				st.Conditions[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	for _, o := range old {
		known := false
		for _, c := range st.Conditions {
			known = known || c.Type == o.Type
		}
		if !known {
			st.Conditions = append(st.Conditions, o)
		}
	}
}

func (a *Agent) nodeObject() *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: a.Name, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
	for k, v := range a.Labels {
		labels[k] = v
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: a.Name, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity: a.capacity, Allocatable: a.capacity, Conditions: a.nodeConditions(time.Now()),
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: a.NodeAddr.String()}, {Type: corev1.NodeHostName, Address: a.Name}},
			NodeInfo:        a.systemInfo(),
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
		},
	}
}

func (a *Agent) nodeConditions(now time.Time) []corev1.NodeCondition {
	at := metav1.NewTime(now.Truncate(time.Second))
	make := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Reason: reason, Message: message, LastHeartbeatTime: at, LastTransitionTime: at}
	}
	return []corev1.NodeCondition{
		make(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		make(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		make(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
		make(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"),
	}
}

func (a *Agent) systemInfo() corev1.NodeSystemInfo {
	info := corev1.NodeSystemInfo{
		OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, KubeletVersion: a.Version,
		ContainerRuntimeVersion: "slipway://" + strings.TrimPrefix(a.Version, "v"),
		MachineID:               readLine("/etc/machine-id"), SystemUUID: readLine("/sys/class/dmi/id/product_uuid"), BootID: readLine("/proc/sys/kernel/random/boot_id"),
		OSImage: osName(),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		info.KernelVersion = unix.ByteSliceToString(u.Release[:])
	}
	return info
}

func readLine(path string) string {
	raw, _ := os.ReadFile(path)
	return strings.TrimSpace(string(raw))
}

func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}

// heartbeat renews the node's lease, and its status now and then, until ctx ends.
func (a *Agent) heartbeat(ctx context.Context) {
	lease, status := time.NewTicker(leaseEvery), time.NewTicker(statusEvery)
	defer lease.Stop()
	defer status.Stop()
	for {
		if err := a.renew(ctx); err != nil && ctx.Err() == nil {
			a.Log.Warn("node lease not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-lease.C:
		case <-status.C:
			if err := a.register(ctx); err != nil && ctx.Err() == nil {
				a.Log.Warn("node status not reported", "error", err)
			}
		}
	}
}

func (a *Agent) renew(ctx context.Context) error {
	now := metav1.NewMicroTime(time.Now())
	seconds := int32(leaseSeconds)
	if have, ok := store.Get[*coordinationv1.Lease](a.Reader, kinds.Leases, leaseNamespace, a.Name); ok {
		next := store.Copy(have)
		next.Spec.RenewTime, next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = &now, &a.Name, &seconds
		_, err := a.Writer.Update(ctx, next)
		return err
	}
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: leaseNamespace, Name: a.Name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &a.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
	if n, ok := store.Get[*corev1.Node](a.Reader, kinds.Nodes, "", a.Name); ok {
		lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	_, err := a.Writer.Create(ctx, lease)
	return err
}
