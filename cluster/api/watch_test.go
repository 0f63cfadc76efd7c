package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// The frames written by hand are those that upstream's types read.
func TestFrames(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 300, 20000} {
		object := bytes.Repeat([]byte("x"), size)
		var out bytes.Buffer
		out.WriteString("before")
		frameProtobuf(&out, "ADDED", object)
		b := out.Bytes()[len("before"):]
		if n := binary.BigEndian.Uint32(b); int(n) != len(b)-4 {
			t.Errorf("size %d: the frame says %d bytes, %d follow", size, n, len(b)-4)
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(b[4:]); err != nil || e.Type != "ADDED" || !bytes.Equal(e.Object.Raw, object) {
			t.Errorf("size %d: read back %q with %d bytes, %v", size, e.Type, len(e.Object.Raw), err)
		}
	}
	var out bytes.Buffer
	frameJSON(&out, "DELETED", []byte("{\"a\":1}\n"))
	var e metav1.WatchEvent
	if err := json.Unmarshal(out.Bytes(), &e); err != nil || e.Type != "DELETED" || string(e.Object.Raw) != `{"a":1}` || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Errorf("JSON frame %q reads back as %v, %v", out.String(), e, err)
	}
}

// A watch whose client does not read is ended, over either protocol, and gives its place back.
func TestUnreadWatchEnds(t *testing.T) {
	i := start(t)
	i.reader.patience = 100 * time.Millisecond
	big := strings.Repeat("x", 500_000)
	for n := range 20 { // more than the windows and buffers on the way take
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("big-", n)}, Data: map[string]string{"x": big}}
		if _, err := i.Client().Create(t.Context(), cm); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan struct{})
	front := &http.Server{TLSConfig: i.opts.Authority.TLS(), Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		i.Handler().ServeHTTP(w, req)
		ended <- struct{}{}
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- front.ServeTLS(l, "", "") }()
	defer func() { front.Close(); <-served }()
	for _, tt := range []struct {
		protocols []string
		want      string
	}{{nil, "HTTP/2.0"}, {[]string{"http/1.1"}, "HTTP/1.1"}} {
		config := rest.CopyConfig(i.config)
		config.NextProtos = tt.protocols
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get("https://" + l.Addr().String() + "/api/v1/namespaces/default/configmaps?watch=1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Proto != tt.want {
			t.Fatalf("a watch answers %s with %s; want 200 with %s", resp.Status, resp.Proto, tt.want)
		}
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("a watch over %s that nobody reads does not end", tt.want)
		}
		if n := i.load.long.Load(); n != 0 {
			t.Errorf("after an unread watch over %s has ended, %d places are taken; want 0", tt.want, n)
		}
	}
}

// unread is a response whose client reads nothing: a write waits for the deadline.
type unread struct {
	http.ResponseWriter
	reads bool
	end   chan time.Time
}

func (u *unread) SetWriteDeadline(at time.Time) error {
	u.end <- at
	return nil
}

func (u *unread) Write(p []byte) (int, error) {
	if u.reads {
		return len(p), nil
	}
	<-u.end
	return 0, os.ErrDeadlineExceeded
}

func TestReadByWaitsOnlyWhileItWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &unread{reads: true, end: make(chan time.Time)}
		out := newReadBy(w, time.Minute)
		for range 3 {
			time.Sleep(time.Hour) // nothing happens that the client could be told
			if _, err := out.Write([]byte("event")); err != nil {
				t.Fatalf("a client that reads, now and then: %v", err)
			}
		}
		w.reads = false
		began := time.Now()
		if _, err := out.Write([]byte("event")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("a client that does not read: %v after %v; want %v after a minute", err, time.Since(began), os.ErrDeadlineExceeded)
		}
	})
}

func FuzzContinue(f *testing.F) {
	good, err := continueToken{Start: "default/a", Revision: 7, Began: 1_700_000_000}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("")
	f.Add("e30")
	f.Fuzz(func(t *testing.T, token string) {
		first, err := decodeContinue(token)
		if err != nil {
			return
		}
		again, err := first.encode()
		if err != nil {
			t.Fatal(err)
		}
		if second, err := decodeContinue(again); second != first || err != nil {
			t.Errorf("token %q means %+v, but encodes to one that means %+v, %v", token, first, second, err)
		}
	})
}
