package record_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func TestEventsAreWrittenCountedAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var log strings.Builder
		sink := record.NewSink(slog.New(slog.NewTextHandler(&log, nil)))
		r := sink.For(store.Direct(s), "kubelet", "n1")
		pod, err := s.Create(t.Context(), kinds.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "u"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- sink.Run(ctx) }()
		show := func() string {
			var out []string
			for _, e := range store.List[*corev1.Event](s, kinds.Events, "shop") {
				out = append(out, fmt.Sprintf("%s %s: %s x%d", e.Type, e.Reason, e.Message, e.Count))
			}
			return strings.Join(out, ", ")
		}
		r.Normal(pod, "Pulled", "image %s", "web:1")
		for range 3 {
			r.Warning(pod, "BackOff", "restarting")
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if got, want := show(), "Normal Pulled: image web:1 x1, Warning BackOff: restarting x3"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
		e := store.List[*corev1.Event](s, kinds.Events, "shop")[1]
		if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.UID != "u" || e.Source.Component != "kubelet" || e.Source.Host != "n1" || e.LastTimestamp.Sub(e.FirstTimestamp.Time) != 2*time.Minute {
			t.Errorf("event = %+v; want it about the pod, by the kubelet on n1, over two minutes", e)
		}
		cancel()
		<-ended
		for range 10_000 { // nobody writes any more: the recorder must not wait
			r.Normal(pod, "Pulled", "again")
		}
		if got := strings.Count(log.String(), "events are dropped"); got != 1 {
			t.Errorf("dropping was logged %d times; want once", got)
		}
		var none *record.Recorder
		none.Normal(pod, "Nothing", "at all")
	})
}
