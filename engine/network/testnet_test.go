package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const netnsEnv = "SLIPWAY_TEST_IN_NETNS"

// TestMain moves the whole test binary into a network namespace of its own: the tests
// see a machine with nothing but a loopback interface, and the real one sees nothing.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 && os.Getenv(netnsEnv) == "" {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			fmt.Fprintln(os.Stderr, "tests of engine/network need a network namespace:", err)
			os.Exit(1)
		}
		err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), netnsEnv+"=1"))
		fmt.Fprintln(os.Stderr, "re-exec in a network namespace:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces and packet rules")
	}
}

// memoryFDs is a descriptor store in this process.
type memoryFDs struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func newMemoryFDs(t testing.TB) *memoryFDs {
	s := &memoryFDs{files: map[string]*os.File{}}
	t.Cleanup(func() {
		for _, f := range s.files {
			f.Close()
		}
	})
	return s
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (s *memoryFDs) Keep(_ context.Context, name string, f *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := dup(f)
	if err == nil {
		s.files[name] = d
	}
	return err
}

func (s *memoryFDs) Fetch(_ context.Context, prefix string) (map[string]*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := map[string]*os.File{}
	for name, f := range s.files {
		if strings.HasPrefix(name, prefix) {
			d, err := dup(f)
			if err != nil {
				return nil, err
			}
			found[name] = d
		}
	}
	return found, nil
}

func (s *memoryFDs) Drop(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil {
		f.Close()
		delete(s.files, name)
	}
	return nil
}

func (s *memoryFDs) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for name := range s.files {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// machine is the host's side of a test: this process's namespace, joined by a veth to
// an "outside" where a client or server of another machine runs.
type machine struct {
	t       testing.TB
	outside *os.File
	fds     *memoryFDs
	dir     string
}

const (
	hostAddr    = "198.51.100.1"
	outsideAddr = "198.51.100.2"
)

func newMachine(t testing.TB) *machine {
	needRoot(t)
	m := &machine{t: t, fds: newMemoryFDs(t), dir: t.TempDir()}
	sh(t, "ip link set lo up")
	m.outside = newNetNS(t)
	fd := m.outside.Fd()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0", PeerNamespace: netlink.NsFd(fd)}))
	sh(t, "ip addr add "+hostAddr+"/24 dev up0 && ip link set up0 up && ip route replace default via "+outsideAddr)
	in(t, m.outside, func() {
		sh(t, "ip link set lo up && ip addr add "+outsideAddr+"/24 dev far0 && ip link set far0 up")
	})
	before := m.traces()
	t.Cleanup(func() {
		if after := m.traces(); !slices.Equal(before, after) {
			t.Errorf("the machine was not left as it was found:\nbefore %q\nafter  %q", before, after)
		}
		sh(t, "ip link del up0")
	})
	return m
}

// traces is everything on the machine that this package could leave behind.
func (m *machine) traces() []string {
	var all []string
	for _, cmd := range []string{"ip -br link | awk '{print $1}'", "ip route show table all type unicast", "ip route show type unreachable", "nft list tables", "ip neigh show nud permanent"} {
		for line := range strings.Lines(sh(m.t, cmd)) {
			if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "fe80") {
				all = append(all, strings.Join(f[:min(3, len(f))], " "))
			}
		}
	}
	return all
}

// open starts a Manager on the machine and tears it down at the end of the test.
func (m *machine) open(change ...func(*Options)) *Manager {
	m.t.Helper()
	opts := Options{Dir: m.dir, Instance: "ab12cd", FDs: m.fds, Log: testLog(m.t)}
	for _, c := range change {
		c(&opts)
	}
	mgr, err := Open(m.t.Context(), opts)
	check(m.t, err)
	m.t.Cleanup(func() {
		if !mgr.closed {
			check(m.t, mgr.Teardown(context.Background()))
		}
	})
	return mgr
}

func testLog(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func newNetNS(t testing.TB) *os.File {
	t.Helper()
	f := rawNetNS(t)
	t.Cleanup(func() { f.Close() })
	return f
}

// rawNetNS is newNetNS for who closes it himself.
func rawNetNS(t testing.TB) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	check(t, r.err)
	return r.f
}

// in runs fn on a thread inside a namespace; sockets made there stay there.
func in(t testing.TB, netns *os.File, fn func()) {
	t.Helper()
	done := make(chan any)
	go func() {
		runtime.LockOSThread()
		var failed any = "the test stopped inside the namespace"
		defer func() { done <- failed }()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			failed = err
			return
		}
		fn()
		failed = nil
	}()
	if failed := <-done; failed != nil {
		t.Fatal(failed)
	}
}

// greet serves a TCP and a UDP greeting with the client's address; netns nil: the host.
func greet(t testing.TB, netns *os.File, addr, greeting string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	listen := func() {
		var err error
		l, err = net.Listen("tcp4", addr)
		check(t, err)
		p, err = net.ListenPacket("udp4", addr)
		check(t, err)
	}
	if netns == nil {
		listen()
	} else {
		in(t, netns, listen)
	}
	t.Cleanup(func() { l.Close(); p.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s", greeting, c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(packetWriter{p, from}, "%s %s", greeting, from.(*net.UDPAddr).IP)
		}
	}()
}

type packetWriter struct {
	net.PacketConn
	to net.Addr
}

func (w packetWriter) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// call connects from a namespace (nil: the host) and returns the greeting, or the
// error's text.
func call(t testing.TB, netns *os.File, network, addr string) (got string) {
	t.Helper()
	dial := func() {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			got = "no connection: " + err.Error()
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if strings.HasPrefix(network, "udp") {
			_, _ = c.Write([]byte("hello"))
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil {
				got = "no connection: " + err.Error()
				return
			}
			got = string(buf[:n])
			return
		}
		b, err := io.ReadAll(c)
		if got = string(b); err != nil {
			got = "no connection: " + err.Error()
		}
	}
	if netns == nil {
		dial()
	} else {
		in(t, netns, dial)
	}
	return got
}

func unreachable4(got string) bool { return strings.HasPrefix(got, "no connection") }

// box is a container as far as the network is concerned.
type box struct {
	id string
	ns *os.File
	ep Endpoint
}

func (m *machine) box(mgr *Manager, spec AttachSpec) box {
	m.t.Helper()
	b := box{id: newID(), ns: newNetNS(m.t)}
	spec.ContainerID = b.id
	var err error
	b.ep, err = mgr.Attach(m.t.Context(), b.ns, spec)
	check(m.t, err)
	return b
}

func (b box) ip() string { return b.ep.Addr.Addr().String() }

// ask sends one DNS query from a namespace.
func ask(t testing.TB, netns *os.File, server, name string, qtype uint16) (reply *dns.Msg) {
	t.Helper()
	in(t, netns, func() {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), qtype)
		c := &dns.Client{Timeout: 2 * time.Second}
		var err error
		if reply, _, err = c.Exchange(q, server); err != nil {
			t.Errorf("query %s for %s: %v", server, name, err)
			reply = new(dns.Msg)
		}
	})
	return reply
}

func answers(m *dns.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.PTR:
			all = append(all, rr.Ptr)
		default:
			all = append(all, rr.String())
		}
	}
	slices.Sort(all)
	return all
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
