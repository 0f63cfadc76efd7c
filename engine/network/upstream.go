package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxInFlight   = 512             // queries that wait for upstream servers
	maxCached     = 2048            // answers remembered
	maxCacheTime  = 5 * time.Minute // however long the answer says
	maxNegative   = 30 * time.Second
	queryTimeout  = 4 * time.Second // a resolver library gives up after five
	nextServer    = 250 * time.Millisecond
	resolvConf    = "/etc/resolv.conf"
	confCheckTime = time.Second
)

// ErrNoUpstream says that nobody is there to ask.
var ErrNoUpstream = errors.New("no upstream DNS server: /etc/resolv.conf of the host names none")

// upstreams asks the servers that the host itself uses, remembers a bounded number of
// answers, and follows the host's resolv.conf as it changes.
type upstreams struct {
	fixed    []netip.AddrPort
	inFlight chan struct{}
	ctx      context.Context
	cancel   context.CancelFunc

	mu      sync.Mutex
	conf    []netip.AddrPort
	checked time.Time
	modTime time.Time
	cache   map[cacheKey]cached
}

type cacheKey struct {
	name    string
	qtype   uint16
	qclass  uint16
	dnssec  bool
	servers string // a container may have servers of its own
}

type cached struct {
	msg     *dns.Msg // never changed
	stored  time.Time
	expires time.Time
}

func newUpstreams(fixed []netip.AddrPort) *upstreams {
	ctx, cancel := context.WithCancel(context.Background())
	return &upstreams{fixed: fixed, inFlight: make(chan struct{}, maxInFlight), ctx: ctx, cancel: cancel, cache: map[cacheKey]cached{}}
}

func (u *upstreams) close() { u.cancel() }

// servers are those of the host now.
func (u *upstreams) servers() []netip.AddrPort {
	if len(u.fixed) > 0 {
		return u.fixed
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.checked) < confCheckTime {
		return u.conf
	}
	u.checked = time.Now()
	info, err := os.Stat(resolvConf)
	if err != nil || info.ModTime().Equal(u.modTime) {
		return u.conf
	}
	if f, err := os.Open(resolvConf); err == nil {
		u.conf, u.modTime = parseResolvConf(bufio.NewScanner(f)), info.ModTime()
		f.Close()
	}
	return u.conf
}

func parseResolvConf(lines *bufio.Scanner) []netip.AddrPort {
	var servers []netip.AddrPort
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}

// exchange answers q from the cache or from the servers (those of the host when via is
// empty). The answer has q's id and may be changed by the caller.
func (u *upstreams) exchange(ctx context.Context, q *dns.Msg, via []netip.AddrPort) (*dns.Msg, error) {
	if len(q.Question) != 1 {
		return nil, fmt.Errorf("forward DNS query: %d questions in one message", len(q.Question))
	}
	if len(via) == 0 {
		via = u.servers()
	}
	if len(via) == 0 {
		return nil, ErrNoUpstream
	}
	key := keyOf(q, via)
	if answer := u.lookup(key, time.Now()); answer != nil {
		return addressed(answer, q), nil
	}
	select {
	case u.inFlight <- struct{}{}:
		defer func() { <-u.inFlight }()
	default:
		return nil, fmt.Errorf("forward DNS query for %s: %d queries are waiting already", key.name, maxInFlight)
	}
	answer, err := u.race(ctx, q, via)
	if err != nil {
		return nil, fmt.Errorf("forward DNS query for %s: %w", key.name, err)
	}
	u.store(key, answer, time.Now())
	return addressed(answer.Copy(), q), nil
}

func keyOf(q *dns.Msg, via []netip.AddrPort) cacheKey {
	question := q.Question[0]
	opt := q.IsEdns0()
	return cacheKey{strings.ToLower(question.Name), question.Qtype, question.Qclass, q.CheckingDisabled || opt != nil && opt.Do(), fmt.Sprint(via)}
}

func addressed(answer, q *dns.Msg) *dns.Msg {
	answer.Id = q.Id
	answer.Question = q.Question // with the case of letters that the client chose
	return answer
}

// race asks one server after the other, each a little later than the one before, and
// takes the first useful answer: a dead first server costs 250 ms, not five seconds.
func (u *upstreams) race(ctx context.Context, q *dns.Msg, via []netip.AddrPort) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	stop := context.AfterFunc(u.ctx, cancel)
	defer stop()
	type result struct {
		msg *dns.Msg
		err error
	}
	results := make(chan result, len(via))
	ask := func(server netip.AddrPort) {
		msg, err := askOne(ctx, q.Copy(), server)
		results <- result{msg, err}
	}
	asked, answered := 0, 0
	var last result
	timer := time.NewTimer(0)
	defer timer.Stop()
	for answered < len(via) {
		select {
		case <-timer.C:
			if asked < len(via) {
				go ask(via[asked])
				asked++
				timer.Reset(nextServer)
			}
		case r := <-results:
			answered++
			if r.err == nil && r.msg.Rcode != dns.RcodeServerFailure && r.msg.Rcode != dns.RcodeRefused {
				return r.msg, nil
			}
			if last.msg == nil {
				last = r
			}
			timer.Reset(0)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return last.msg, last.err
}

// askOne asks over UDP, and again over TCP when the answer did not fit.
func askOne(ctx context.Context, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	q.Id = dns.Id()
	msg, err := askOver(ctx, "udp", q, server)
	if err != nil || !msg.Truncated {
		return msg, err
	}
	return askOver(ctx, "tcp", q, server)
}

func askOver(ctx context.Context, proto string, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	client := &dns.Client{Net: proto, Timeout: queryTimeout, UDPSize: dns.MaxMsgSize}
	msg, _, err := client.ExchangeContext(ctx, q, server.String())
	if err != nil {
		return nil, err
	}
	if len(msg.Question) != 1 || !strings.EqualFold(msg.Question[0].Name, q.Question[0].Name) || msg.Question[0].Qtype != q.Question[0].Qtype {
		return nil, fmt.Errorf("%s answered another question", server)
	}
	return msg, nil
}

func (u *upstreams) lookup(key cacheKey, now time.Time) *dns.Msg {
	u.mu.Lock()
	c, ok := u.cache[key]
	if ok && !now.Before(c.expires) {
		delete(u.cache, key)
		ok = false
	}
	u.mu.Unlock()
	if !ok {
		return nil
	}
	msg := c.msg.Copy()
	age := uint32(now.Sub(c.stored) / time.Second)
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns, msg.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	return msg
}

func (u *upstreams) store(key cacheKey, msg *dns.Msg, now time.Time) {
	ttl := cacheTime(msg)
	if ttl <= 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for old := range u.cache {
		if len(u.cache) < maxCached {
			break
		}
		delete(u.cache, old) // any: map order is as good as random
	}
	u.cache[key] = cached{msg, now, now.Add(ttl)}
}

// cacheTime is how long an answer may be repeated; zero: not at all.
func cacheTime(msg *dns.Msg) time.Duration {
	limit := maxCacheTime
	switch {
	case msg.Rcode == dns.RcodeNameError, msg.Rcode == dns.RcodeSuccess && len(msg.Answer) == 0:
		limit = maxNegative
		if len(msg.Ns) == 0 {
			return 0
		}
	case msg.Rcode != dns.RcodeSuccess:
		return 0
	}
	for _, section := range [][]dns.RR{msg.Answer, msg.Ns} {
		for _, rr := range section {
			ttl := rr.Header().Ttl
			if soa, ok := rr.(*dns.SOA); ok {
				ttl = min(ttl, soa.Minttl)
			}
			limit = min(limit, time.Duration(ttl)*time.Second)
		}
	}
	return limit
}

// Exchange forwards a query to the host's DNS servers, through the same bounded cache
// that containers use.
func (m *Manager) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	return m.up.exchange(ctx, q, nil)
}
