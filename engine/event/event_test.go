package event

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

func publishN(b *Bus, from, n int) {
	for i := from; i < from+n; i++ {
		b.Publish(Event{Type: Container, Action: strconv.Itoa(i), Time: time.Unix(int64(i), 0)})
	}
}

func TestSubscribeSinceReplaysWhatIsRemembered(t *testing.T) {
	b := NewBus(4)
	publishN(b, 0, 6) // 0 and 1 are overwritten
	for _, tt := range []struct {
		since int64
		want  []string
	}{
		{1, []string{"2", "3", "4", "5"}},
		{4, []string{"4", "5"}},
		{9, nil},
	} {
		s := b.Subscribe(time.Unix(tt.since, 0))
		var got []string
		for {
			e, ok, err := s.TryNext()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			got = append(got, e.Action)
		}
		if len(got) != len(tt.want) || (len(got) > 0 && got[0] != tt.want[0]) {
			t.Errorf("Subscribe(since %d) saw %v; want %v", tt.since, got, tt.want)
		}
	}
}

func TestNextWaitsAndHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBus(4)
		s := b.Subscribe(time.Time{})
		go func() {
			time.Sleep(time.Second)
			publishN(b, 7, 1)
		}()
		if e, err := s.Next(t.Context()); err != nil || e.Action != "7" {
			t.Fatalf("Next = %v, %v; want event 7", e, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Next without events = %v; want deadline exceeded", err)
		}
	})
}

func TestSlowReaderIsToldAndGoesOn(t *testing.T) {
	b := NewBus(2)
	s := b.Subscribe(time.Time{})
	publishN(b, 0, 5)
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrLagged) {
		t.Fatalf("Next after overrun = %v; want ErrLagged", err)
	}
	publishN(b, 5, 1)
	if e, err := s.Next(t.Context()); err != nil || e.Action != "5" {
		t.Fatalf("Next after ErrLagged = %v, %v; want event 5", e, err)
	}
}
