package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
