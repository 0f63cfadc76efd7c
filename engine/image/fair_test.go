package image

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/sync/semaphore"
)

// A client that stops sending in the middle of a layer holds no processor.
func TestAStalledLoadStopsNobody(t *testing.T) {
	s := openStore(t, Options{CPU: semaphore.NewWeighted(1)})
	archive := dockerArchive(t, "stalled", busybox(t))
	pr, pw := io.Pipe()
	loaded := make(chan error, 1)
	go func() {
		_, err := s.Load(t.Context(), pr, nil)
		loaded <- err
	}()
	if _, err := pw.Write(archive[:len(archive)/2]); err != nil { // returns when it is read
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(second(t)), "other", ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pw.Write(archive[len(archive)/2:]); err != nil {
		t.Fatal(err)
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
}
