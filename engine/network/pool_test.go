package network

import (
	"bufio"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestAddressesRestBeforeTheyAreUsedAgain(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/29")
	a := newAllocator(p, p)
	a.claim(addr("10.0.0.1"))
	var got []string
	for range 3 {
		x, _ := a.take()
		got = append(got, x.String())
		a.release(x)
	}
	if want := "[10.0.0.2 10.0.0.3 10.0.0.4]"; fmt.Sprint(got) != want {
		t.Errorf("take and release three times: %v; want %s", got, want)
	}
	for range 5 {
		if _, ok := a.take(); !ok {
			t.Error("10.0.0.0/29 with one address claimed has five to give")
		}
	}
	if x, ok := a.take(); ok {
		t.Errorf("a full range gave %s", x)
	}
}

func TestRestartNeverGoesBack(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/24")
	a := newAllocator(p, p)
	var remembered, last netip.Addr
	for range 40 {
		last, _ = a.take()
		if at, due := a.mark(false); due {
			remembered = at
		}
	}
	b := newAllocator(p, p)
	b.resume(remembered)
	if next, _ := b.take(); next.Compare(last) <= 0 {
		t.Errorf("after a kill at %s the next address is %s", last, next)
	}
}

func TestFreeSubnet(t *testing.T) {
	pools := []Pool{{netip.MustParsePrefix("10.0.0.0/22"), 24}, {netip.MustParsePrefix("10.9.0.0/24"), 24}}
	for _, tt := range []struct{ taken, want string }{
		{"", "10.0.0.0/24"},
		{"10.0.0.0/25", "10.0.1.0/24"},
		{"10.0.0.0/23 10.0.3.3/32", "10.0.2.0/24"},
		{"10.0.0.0/16", "10.9.0.0/24"},
		{"10.0.0.0/8", "invalid Prefix"},
	} {
		var taken []netip.Prefix
		for _, f := range strings.Fields(tt.taken) {
			taken = append(taken, netip.MustParsePrefix(f))
		}
		got, err := freeSubnet(pools, taken)
		if got.String() != tt.want || (err == nil) != got.IsValid() {
			t.Errorf("with %q taken: %s, %v; want %s", tt.taken, got, err, tt.want)
		}
	}
}

func TestParseResolvConf(t *testing.T) {
	conf := "# by hand\nsearch a b\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\n nameserver 10.0.0.2 # second\nnameserver nonsense\noptions ndots:5\n"
	got := parseResolvConf(bufio.NewScanner(strings.NewReader(conf)))
	if want := "[10.0.0.1:53 [fe80::1%eth0]:53 10.0.0.2:53]"; fmt.Sprint(got) != want {
		t.Errorf("servers %v; want %s", got, want)
	}
}

func TestMoreNetworksThanDockerHas(t *testing.T) {
	var taken []netip.Prefix
	for range 287 {
		p, err := freeSubnet(defaultPools(), taken)
		if err != nil {
			t.Fatalf("after %d networks: %v", len(taken), err)
		}
		taken = append(taken, p)
	}
	if got := taken[31].String(); got != "10.176.0.0/24" {
		t.Errorf("the 32nd network has %s; want the first of the smaller ranges", got)
	}
	if p, err := freeSubnet(defaultPools(), taken); err == nil {
		t.Errorf("one more network than there are ranges has %s", p)
	}
}
