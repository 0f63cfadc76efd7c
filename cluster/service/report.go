package service

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
)

// PortsBound is the condition of services whose ports on the node could not be had.
const PortsBound = "slipway.dev/PortsBound"

// report writes a service's addresses and troubles into its status, if they changed.
func (s *Server) report(ctx context.Context, out outcome) {
	want := out.svc.Status.DeepCopy()
	want.LoadBalancer = loadBalancer(out)
	setCondition(&want.Conditions, out)
	if s.opts.Writer == nil || sameStatus(&out.svc.Status, want) {
		return
	}
	if out.problem != nil { // once, however often the port is tried
		s.log.Warn("service is not complete", "service", store.KeyOf(out.svc), "error", out.problem)
	}
	svc := store.Copy(out.svc)
	svc.Status = *want
	if _, err := s.opts.Writer.UpdateStatus(ctx, svc); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		s.log.Error("status of service was not written", "service", store.KeyOf(svc), "error", err)
	}
}

func loadBalancer(out outcome) corev1.LoadBalancerStatus {
	var st corev1.LoadBalancerStatus
	for _, a := range out.ingress {
		mode := corev1.LoadBalancerIPModeVIP
		st.Ingress = append(st.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	return st
}

func setCondition(conditions *[]metav1.Condition, out outcome) {
	if out.problem == nil {
		meta.RemoveStatusCondition(conditions, PortsBound)
		return
	}
	meta.SetStatusCondition(conditions, metav1.Condition{
		Type: PortsBound, Status: metav1.ConditionFalse, Reason: "PortsNotBound", Message: out.problem.Error(), ObservedGeneration: out.svc.Generation,
	})
}

func sameStatus(a, b *corev1.ServiceStatus) bool {
	return slices.EqualFunc(a.LoadBalancer.Ingress, b.LoadBalancer.Ingress, func(x, y corev1.LoadBalancerIngress) bool { return x.IP == y.IP }) &&
		slices.EqualFunc(a.Conditions, b.Conditions, func(x, y metav1.Condition) bool {
			return x.Type == y.Type && x.Status == y.Status && x.Message == y.Message
		})
}
