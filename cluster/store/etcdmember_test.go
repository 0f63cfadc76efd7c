package store

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"
)

func TestEtcdSaysTheSameOnceASecond(t *testing.T) {
	var out bytes.Buffer
	core := zapBridge{slog.New(slog.NewTextHandler(&out, nil)), &repeats{}}
	noon := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	say := func(message string, after time.Duration) {
		if err := core.With(nil).(zapBridge).Write(zapcore.Entry{Level: zapcore.WarnLevel, Time: noon.Add(after), Message: message}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1000 {
		say("busy", time.Duration(i)*100*time.Microsecond)
	}
	say("8e9e05c52164694d cannot campaign at term 2 since there are still pending configuration changes to apply", 150*time.Millisecond)
	say("broken", 200*time.Millisecond)
	say("busy", 300*time.Millisecond)
	say("busy", 1300*time.Millisecond)
	if strings.Contains(out.String(), "campaign") {
		t.Errorf("an ordinary start is warned of:\n%s", out.String())
	}
	if got := strings.Count(out.String(), "msg=busy"); got != 3 || !strings.Contains(out.String(), "msg=broken") {
		t.Errorf("%d lines say busy; want 3: at first, after something else was said, and a second later\n%s", got, out.String())
	}
}
