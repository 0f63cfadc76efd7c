package network

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// bareManager has one network with one container and no kernel under it.
func bareManager() (*Manager, *resolver) {
	m := &Manager{networks: map[string]*segment{}, endpoints: map[string]map[string]*Endpoint{}, up: newUpstreams(nil)}
	m.log = slog.New(slog.DiscardHandler)
	n := Network{ID: "n1", Name: "app", Driver: DriverBridge, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.1"), Internal: true}
	s := &segment{Network: n, byAddr: map[netip.Addr]*Endpoint{}, byName: map[string][]*Endpoint{}}
	m.networks[n.ID] = s
	m.enterLocked(s, &Endpoint{ID: "e", NetworkID: n.ID, ContainerID: newID(), Name: "web", Aliases: []string{"my_db"}, Addr: netip.MustParsePrefix("10.0.0.2/24")})
	return m, &resolver{m: m, seg: s}
}

// Whatever bytes come, what goes out is a DNS message that answers them, and fits.
func FuzzResolver(f *testing.F) {
	for _, name := range []string{"web.", "WEB.app.", "my_db.", "2.0.0.10.in-addr.arpa.", "300.0.0.10.in-addr.arpa.", "example.com.", "."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeANY, dns.TypeTXT} {
			q := new(dns.Msg)
			q.SetQuestion(name, typ)
			b, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	_, r := bareManager()
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			t.Skip()
		}
		for _, client := range []string{"10.0.0.2", "10.0.0.1", "192.0.2.1"} {
			reply := r.answer(addr(client), q)
			if reply.Id != q.Id || !reply.Response {
				t.Errorf("answer %v does not belong to query %v", reply, q)
			}
			if client == "192.0.2.1" && (reply.Rcode == dns.RcodeSuccess || len(reply.Answer) > 0) {
				t.Errorf("a stranger was told %v", reply)
			}
			reply.Truncate(dns.MinMsgSize)
			if _, err := reply.Pack(); err != nil && len(q.Question) == 1 {
				t.Errorf("answer to %v cannot be sent: %v", q, err)
			}
		}
	})
}

func TestCacheAgesAndIsBounded(t *testing.T) {
	u := newUpstreams([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")})
	now := time.Unix(1000, 0)
	answer := new(dns.Msg)
	answer.SetQuestion("a.test.", dns.TypeA)
	answer.Response = true
	answer.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.test.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: addr("192.0.2.9").AsSlice()}}
	q := new(dns.Msg)
	q.SetQuestion("A.test.", dns.TypeA)
	key := keyOf(q, u.fixed)
	u.store(key, answer, now)
	if got := u.lookup(key, now.Add(20*time.Second)); got == nil || got.Answer[0].Header().Ttl != 40 {
		t.Errorf("after 20 s of 60: %v; want a time to live of 40", got)
	}
	if got := u.lookup(key, now.Add(61*time.Second)); got != nil {
		t.Errorf("after 61 s of 60: %v", got)
	}
	for i := range maxCached + 10 {
		key.qtype = uint16(i)
		u.store(key, answer, now)
	}
	if len(u.cache) != maxCached {
		t.Errorf("%d answers are remembered; the bound is %d", len(u.cache), maxCached)
	}
	failed := answer.Copy()
	failed.Rcode = dns.RcodeServerFailure
	if d := cacheTime(failed); d != 0 {
		t.Errorf("a server failure is remembered for %s", d)
	}
}
