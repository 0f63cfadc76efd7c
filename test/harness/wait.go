package harness

import (
	"testing"
	"time"
)

// Eventually asks again and again until check is content, for what the machine does not announce. It fails the
// test when commandLimit is reached, which is generous, since it only matters when something is broken.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(commandLimit)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, commandLimit, err)
		}
		time.Sleep(pause)
	}
}
