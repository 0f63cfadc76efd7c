// Package networktest is for tests of what touches the machine's network: it gives a
// test binary a machine of its own (a network namespace), with another machine outside
// at the end of a wire, and greeters and callers in namespaces.
package networktest

import (
	"context"
	"encoding/binary"
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

// Main is for TestMain. It moves the whole test binary into a network namespace of its
// own: the tests see a machine with nothing but a loopback interface, and the real one
// sees nothing.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has something left to do afterwards.
func Run(m *testing.M) int {
	if os.Getuid() == 0 && os.Getenv(netnsEnv) == "" {
		fmt.Fprintln(os.Stderr, "these tests need a network namespace:", enterNamespace())
		return 1
	}
	return m.Run()
}

// enterNamespace makes a network namespace and starts this program over in it; it returns only when that failed.
func enterNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	return fmt.Errorf("start over: %w", syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), netnsEnv+"=1")))
}

// NeedRoot skips a test that cannot work without.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces and packet rules")
	}
}

// FDs is a descriptor store in this process.
type FDs struct {
	mu    sync.Mutex
	files map[string]*os.File
}

// NewFDs makes an empty store.
func NewFDs(t testing.TB) *FDs {
	s := &FDs{files: map[string]*os.File{}}
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

// Keep, Fetch and Drop are the descriptor store.
func (s *FDs) Keep(_ context.Context, name string, f *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := dup(f)
	if err == nil {
		s.files[name] = d
	}
	return err
}

func (s *FDs) Fetch(_ context.Context, prefix string) (map[string]*os.File, error) {
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

func (s *FDs) Drop(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil {
		f.Close()
		delete(s.files, name)
	}
	return nil
}

// Names lists what is kept.
func (s *FDs) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for name := range s.files {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// Machine is the host's side of a test: this process's namespace, joined by a veth to
// an "outside" where a client or server of another machine runs.
type Machine struct {
	T       testing.TB
	Outside *os.File // the other machine's namespace
	FDs     *FDs
	Dir     string // an empty directory
}

// Addresses of the two machines on the wire between them.
const (
	HostAddr    = "198.51.100.1"
	OutsideAddr = "198.51.100.2"
)

// NewMachine sets the machine up, and checks at the end of the test that it was left as
// it was found.
func NewMachine(t testing.TB) *Machine {
	NeedRoot(t)
	m := &Machine{T: t, FDs: NewFDs(t), Dir: t.TempDir()}
	Sh(t, "ip link set lo up")
	m.Outside = NetNS(t)
	fd := m.Outside.Fd()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	Check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0", PeerNamespace: netlink.NsFd(fd)}))
	Sh(t, "ip addr add "+HostAddr+"/24 dev up0 && ip link set up0 up && ip route replace default via "+OutsideAddr)
	In(t, m.Outside, func() {
		Sh(t, "ip link set lo up && ip addr add "+OutsideAddr+"/24 dev far0 && ip link set far0 up")
	})
	before := m.Traces()
	t.Cleanup(func() {
		if after := m.Traces(); !slices.Equal(before, after) {
			t.Errorf("the machine was not left as it was found:\nbefore %q\nafter  %q", before, after)
		}
		Sh(t, "ip link del up0")
	})
	return m
}

// Traces is everything on the machine that networks could leave behind.
func (m *Machine) Traces() []string {
	var all []string
	for _, cmd := range []string{"ip -br link | awk '{print $1}'", "ip route show table all type unicast", "ip route show type unreachable", "nft list tables", "ip neigh show nud permanent"} {
		for line := range strings.Lines(Sh(m.T, cmd)) {
			if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "fe80") {
				all = append(all, strings.Join(f[:min(3, len(f))], " "))
			}
		}
	}
	return all
}

// Log logs to the test when it is verbose.
func Log(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Check ends the test on an error.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Sh runs a shell script that has to succeed.
func Sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// NetNS makes a network namespace.
func NetNS(t testing.TB) *os.File {
	t.Helper()
	f := RawNetNS(t)
	t.Cleanup(func() { f.Close() })
	return f
}

// RawNetNS is NetNS for who closes it himself.
func RawNetNS(t testing.TB) *os.File {
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
	Check(t, r.err)
	return r.f
}

// In runs fn on a thread inside a namespace; sockets made there stay there.
func In(t testing.TB, netns *os.File, fn func()) {
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

// Greet serves a TCP and a UDP greeting with the client's address; netns nil: the host.
func Greet(t testing.TB, netns *os.File, addr, greeting string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	listen := func() {
		var err error
		l, err = net.Listen("tcp4", addr)
		Check(t, err)
		p, err = net.ListenPacket("udp4", addr)
		Check(t, err)
	}
	if netns == nil {
		listen()
	} else {
		In(t, netns, listen)
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

// patience ends what hangs. Nothing is measured by it, so it is long: a busy machine may let a second pass between a
// packet and its answer.
const patience = 20 * time.Second

// Call connects from a namespace (nil: the host) and returns the greeting, or the
// error's text.
func Call(t testing.TB, netns *os.File, network, addr string) string {
	t.Helper()
	return connect(t, netns, network, addr, patience)
}

// Knock is Call for who has to find nobody, or asks again and again: what is dropped costs it a second.
func Knock(t testing.TB, netns *os.File, network, addr string) string {
	t.Helper()
	return connect(t, netns, network, addr, time.Second)
}

func connect(t testing.TB, netns *os.File, network, addr string, limit time.Duration) (got string) {
	t.Helper()
	dial := func() {
		c, err := net.DialTimeout(network, addr, limit)
		if err != nil {
			got = "no connection: " + err.Error()
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(limit))
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
		In(t, netns, dial)
	}
	return got
}

// Unreachable says that Call or Knock found nobody.
func Unreachable(got string) bool { return strings.HasPrefix(got, "no connection") }

// KnockLoopback is Knock by TCP at a port of 127.0.0.1 as a neighbour on the wire can do it: by a route over gateway.
func KnockLoopback(t testing.TB, netns *os.File, gateway, port string) (got string) {
	t.Helper()
	In(t, netns, func() {
		Sh(t, "ip addr flush dev lo && echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet && ip route add 127.0.0.1 via "+gateway)
		defer Sh(t, "ip route del 127.0.0.1 && echo 0 >/proc/sys/net/ipv4/conf/all/route_localnet && ip addr add 127.0.0.1/8 dev lo")
		got = Knock(t, nil, "tcp", "127.0.0.1:"+port)
	})
	return got
}

// Forge sends one UDP datagram from a namespace under a source address that may be anybody's, as a program with
// CAP_NET_RAW can.
func Forge(t testing.TB, netns *os.File, from, to netip.AddrPort, text string) {
	t.Helper()
	In(t, netns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		Check(t, err)
		defer unix.Close(fd)
		src, dst := from.Addr().As4(), to.Addr().As4()
		p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0} // the kernel fills in length and checksum
		p = slices.Concat(p, src[:], dst[:])
		p = binary.BigEndian.AppendUint16(p, from.Port())
		p = binary.BigEndian.AppendUint16(p, to.Port())
		p = binary.BigEndian.AppendUint16(p, uint16(8+len(text)))
		p = append(p, 0, 0) // no checksum of the datagram
		Check(t, unix.Sendto(fd, append(p, text...), 0, &unix.SockaddrInet4{Addr: dst}))
	})
}

// Ask sends one DNS query from a namespace.
func Ask(t testing.TB, netns *os.File, server, name string, qtype uint16) (reply *dns.Msg) {
	t.Helper()
	In(t, netns, func() {
		q := new(dns.Msg)
		q.SetQuestion(dns.Fqdn(name), qtype)
		c := &dns.Client{Timeout: patience}
		var err error
		if reply, _, err = c.Exchange(q, server); err != nil {
			t.Errorf("query %s for %s: %v", server, name, err)
			reply = new(dns.Msg)
		}
	})
	return reply
}

// Answers are the values in an answer, sorted.
func Answers(m *dns.Msg) []string {
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
