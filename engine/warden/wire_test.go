package warden

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// connPair is two connected sockets; the second is bare, to send what no Conn would.
func connPair(t testing.TB) (*Conn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socks := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		socks[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return NewConn(socks[0]), socks[1]
}

func TestMessagesWithDescriptors(t *testing.T) {
	a, raw := connPair(t)
	b := NewConn(raw)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := dupFD(int(w.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	big := strings.Repeat("x", 1<<20) // more than the socket's buffer
	sent := make(chan error, 1)
	go func() {
		err := a.Send(&Message{ID: 1, Method: "one", Body: Encode(big), FDs: []int{fd}})
		sent <- errors.Join(err, a.Send(&Message{ID: 2, Method: "two"}))
	}()
	m, err := b.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var body string
	if err := json.Unmarshal(m.Body, &body); err != nil || body != big || m.ID != 1 || len(m.FDs) != 1 {
		t.Fatalf("received %d, %d bytes, %d descriptors, %v; want what was sent", m.ID, len(body), len(m.FDs), err)
	}
	if m2, err := b.Receive(); err != nil || m2.ID != 2 || len(m2.FDs) != 0 {
		t.Errorf("second message = %+v, %v; want the second that was sent", m2, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	unix.Write(m.FDs[0], []byte("through"))
	m.Discard()
	if got, _ := io.ReadAll(r); string(got) != "through" { // ends only if no copy of the write end is left
		t.Errorf("through the passed descriptor came %q", got)
	}
	a.Close()
	if _, err := b.Receive(); err != io.EOF {
		t.Errorf("after the end: %v; want io.EOF", err)
	}
}

func TestMalformedFrames(t *testing.T) {
	head := func(fds, size int) []byte {
		b := make([]byte, headSize)
		putHeader(b, fds, size)
		return b
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		want  error
	}{
		{"no frame", []byte("GET / HTTP/1.1\r\n"), ErrFrame},
		{"too long", head(0, maxBody+1), ErrFrame},
		{"descriptors that do not come", append(head(1, 2), "{}"...), ErrFrame},
		{"not JSON", append(head(0, 2), "{{"...), ErrFrame},
		{"no version", append(head(0, 2), "{}"...), ErrFrame},
		{"cut off", append(head(0, 100), "{}"...), io.ErrUnexpectedEOF},
		{"cut off in the header", head(0, 2)[:5], io.ErrUnexpectedEOF},
	} {
		c, raw := connPair(t)
		raw.Write(tt.frame)
		raw.CloseWrite()
		if _, err := c.Receive(); !errors.Is(err, tt.want) {
			t.Errorf("receive %s: %v; want %v", tt.name, err, tt.want)
		}
	}
}

func TestErrorKindsSurvive(t *testing.T) {
	for _, k := range kinds {
		err := ToWire(errors.Join(errors.New("x"), k.err)).Unpack()
		if !errors.Is(err, k.err) || !strings.HasPrefix(err.Error(), "x\n") {
			t.Errorf("%s arrives as %v", k.name, err)
		}
	}
	if err := ToWire(io.EOF).Unpack(); !errdefs.IsUnknown(err) || err.Error() != "EOF" {
		t.Errorf("other errors arrive as %v; want Unknown, with the text", err)
	}
}

// FuzzDecode: whatever arrives is refused or is a message that survives a round trip.
func FuzzDecode(f *testing.F) {
	for _, m := range []Message{
		{Version: 1, ID: 7, Method: MethodStart, Body: Encode(ContainerSpec{ID: "a"})},
		{Version: 1, ID: 7, Error: &WireError{Kind: "notfound", Message: "No such container: x"}},
		{Version: 2, Method: PushHold, Body: Encode(Hold{Key: Key{Kind: HoldProcess, ID: "a"}, Roles: []string{RoleStdin}})},
	} {
		f.Add([]byte(Encode(m)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("decode %q: %v; want ErrFrame", b, err)
			}
			return
		}
		again, err := decode(Encode(m))
		if err != nil {
			t.Fatalf("decode of the encoded %q: %v", b, err)
		}
		if !bytes.Equal(Encode(again), Encode(m)) {
			t.Fatalf("%q became %q", Encode(m), Encode(again))
		}
		for _, v := range []any{&Hold{}, &Hello{}, &Target{}, &ContainerSpec{}, &ExecSpec{}, &SandboxSpec{}} {
			Decode(m.Body, v) // must not panic
		}
		if m.Error != nil {
			_ = m.Error.Unpack().Error()
		}
	})
}
