// Package nft writes nftables rules that can be read.
//
// It is a thin vocabulary over google/nftables: matches and verdicts that compose
// into rules, keys that load registers for set lookups, and a Conn whose Do sends
// everything one change needs in one kernel transaction. It keeps no state of its
// own and knows neither networks nor services; both wings may use it.
//
// Rules here are for IPv4 tables.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Element types of sets and maps.
var (
	Addr    = nftables.TypeIPAddr
	Service = nftables.TypeInetService
	Proto   = nftables.TypeInetProto
	IfName  = nftables.TypeIFName
	Integer = nftables.TypeInteger
	Verdict = nftables.TypeVerdict
)

// Concat is the type of several values one after the other.
func Concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// Conn talks to the nftables of one network namespace. Safe for concurrent use.
type Conn struct {
	mu     sync.Mutex // held over a whole transaction: the library buffers messages per connection
	c      *nftables.Conn
	netns  int
	nextID uint32
}

// Dial connects to the namespace of netnsFD, or to the current one when it is 0. The
// descriptor has to stay open as long as the Conn.
func Dial(netnsFD int) (*Conn, error) {
	c := &Conn{netns: netnsFD, nextID: 1}
	return c, c.redial()
}

// redial opens one socket for all transactions. A socket per transaction would be
// slow: closing one makes the kernel finish its deferred clean-up first (5-20 ms).
func (c *Conn) redial() error {
	opts := []nftables.ConnOption{nftables.WithSockOptions(bigBuffers), nftables.AsLasting()}
	if c.netns > 0 {
		opts = append(opts, nftables.WithNetNSFd(c.netns))
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("open nftables netlink socket: %w", err)
	}
	c.c = conn
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.CloseLasting()
}

// A batch is one message to the kernel, and one acknowledgement per command of it comes
// back: with default buffers a batch of a few hundred commands fails with ENOBUFS after it
// was committed, and 2,000 services take 10,000 commands. This is a limit; memory is only
// taken while a batch is under way.
const bufferLimit = 64 << 20

func bigBuffers(c *netlink.Conn) error {
	return errors.Join(c.SetReadBuffer(bufferLimit), c.SetWriteBuffer(bufferLimit))
}

// Tables lists the IPv4 tables of the namespace by name.
func (c *Conn) Tables() ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tables, err := c.c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Name
	}
	return names, nil
}

// Chains lists all chains of all families.
func (c *Conn) Chains() ([]*nftables.Chain, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.ListChains()
}

// Ranges reads a set of address ranges, as Range makes them, of any table; none when there is no such set.
func (c *Conn) Ranges(table, set string) ([]netip.Prefix, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.c.GetSetByName(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4}, set)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	var elems []nftables.SetElement
	if err == nil {
		elems, err = c.c.GetSetElements(s)
	}
	if err != nil {
		return nil, fmt.Errorf("read set %s of nftables table %s: %w", set, table, err)
	}
	return rangesOf(elems), nil
}

// rangesOf pairs the beginnings and ends of ranges that do not overlap.
func rangesOf(elems []nftables.SetElement) []netip.Prefix {
	var firsts, ends []uint32
	for _, e := range elems {
		if len(e.Key) != 4 {
			continue // not addresses
		}
		if n := binary.BigEndian.Uint32(e.Key); e.IntervalEnd {
			ends = append(ends, n)
		} else {
			firsts = append(firsts, n)
		}
	}
	slices.Sort(firsts)
	slices.Sort(ends)
	if extra := len(ends) - len(firsts); extra > 0 {
		ends = ends[extra:] // the nft program marks where nothing begins, too
	}
	var all []netip.Prefix
	for i, end := range ends {
		var first [4]byte
		binary.BigEndian.PutUint32(first[:], firsts[i])
		all = append(all, netip.PrefixFrom(netip.AddrFrom4(first), 32-bits.Len32(end-firsts[i]-1)))
	}
	return all
}

// Do runs build and commits what it put into the batch as one transaction: all or nothing.
func (c *Conn) Do(build func(*Batch)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := &Batch{c: c}
	build(b)
	err := b.err
	if err == nil {
		err = c.c.Flush()
	}
	if err == nil {
		return nil
	}
	// Messages may still be buffered, and answers unread: start afresh.
	return errors.Join(err, c.c.CloseLasting(), c.redial())
}

// DropTable removes an IPv4 table; one that is not there is no error.
func (c *Conn) DropTable(name string) error {
	err := c.Do(func(b *Batch) { b.c.c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}) })
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// Batch collects one transaction. The first error sticks and voids it.
type Batch struct {
	c   *Conn
	err error
}

// NewTable starts an empty IPv4 table, in place of one of the same name.
func (b *Batch) NewTable(name string) *nftables.Table {
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	b.c.c.AddTable(t)
	b.c.c.DelTable(t)
	return b.c.c.AddTable(t)
}

// FreshTable starts an IPv4 table where there is none. Cheaper than NewTable, which makes
// the kernel wait until nobody uses the old one.
func (b *Batch) FreshTable(name string) *nftables.Table {
	return b.c.c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
}

// Set declares a set with its elements.
func (b *Batch) Set(s *nftables.Set, elems []nftables.SetElement) {
	b.c.nextID++
	s.ID = b.c.nextID
	s.Concatenation = len(nftables.ConcatSetTypeElements(s.KeyType)) > 1
	b.check(b.c.c.AddSet(s, nil))
	b.Add(s, elems)
}

// DelSet removes a set.
func (b *Batch) DelSet(s *nftables.Set) { b.c.c.DelSet(s) }

// FlushSet empties a set.
func (b *Batch) FlushSet(s *nftables.Set) { b.c.c.FlushSet(s) }

// A netlink attribute holds at most 64 KB; an element takes about 100 bytes.
const elementsPerMessage = 400

// Add adds elements to a set.
func (b *Batch) Add(s *nftables.Set, elems []nftables.SetElement) {
	for len(elems) > 0 {
		n := min(len(elems), elementsPerMessage)
		b.check(b.c.c.SetAddElements(s, elems[:n]))
		elems = elems[n:]
	}
}

// Delete removes elements from a set; one that is not there fails the transaction.
func (b *Batch) Delete(s *nftables.Set, elems []nftables.SetElement) {
	for len(elems) > 0 {
		n := min(len(elems), elementsPerMessage)
		b.check(b.c.c.SetDeleteElements(s, elems[:n]))
		elems = elems[n:]
	}
}

func (b *Batch) check(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Hook says where a base chain runs.
type Hook struct {
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority int
}

// Chain adds a chain (a base chain when hook is not nil) with its rules.
func (b *Batch) Chain(t *nftables.Table, name string, hook *Hook, rules ...Rule) {
	ch := &nftables.Chain{Name: name, Table: t}
	if hook != nil {
		prio := nftables.ChainPriority(hook.Priority)
		policy := nftables.ChainPolicyAccept
		ch.Type, ch.Hooknum, ch.Priority, ch.Policy = hook.Type, hook.Hook, &prio, &policy
	}
	b.c.c.AddChain(ch)
	b.Rules(ch, rules...)
}

// FlushChain removes the rules of a chain.
func (b *Batch) FlushChain(t *nftables.Table, name string) {
	b.c.c.FlushChain(&nftables.Chain{Name: name, Table: t})
}

// DelChain removes a chain; nothing may refer to it any more.
func (b *Batch) DelChain(t *nftables.Table, name string) {
	b.c.c.DelChain(&nftables.Chain{Name: name, Table: t})
}

// Rules appends rules to a chain.
func (b *Batch) Rules(ch *nftables.Chain, rules ...Rule) {
	for _, r := range rules {
		b.c.c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: r})
	}
}

// Rule is a list of expressions; a part of a rule is one too.
type Rule []expr.Any

// If joins matches and a verdict to one rule.
func If(parts ...Rule) Rule {
	var r Rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func cmp(op expr.CmpOp, data []byte) *expr.Cmp { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func ifMatch(key expr.MetaKey, op expr.CmpOp, name string) Rule {
	data := IfNameBytes(name)
	if n := len(name); n > 0 && name[n-1] == '*' {
		data = []byte(name[:n-1])
	}
	return Rule{&expr.Meta{Key: key, Register: 1}, cmp(op, data)}
}

// IIf matches the input interface; a trailing * matches by prefix. OIf, and the negations, likewise.
func IIf(name string) Rule    { return ifMatch(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func IIfNot(name string) Rule { return ifMatch(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func OIf(name string) Rule    { return ifMatch(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func OIfNot(name string) Rule { return ifMatch(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

// IfNameBytes is an interface name as sets hold it.
func IfNameBytes(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func addrMatch(offset uint32, op expr.CmpOp, p netip.Prefix) Rule {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	a := p.Masked().Addr().As4()
	return Rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		cmp(op, a[:]),
	}
}

// Saddr matches packets from a range; Daddr to it; the negations, outside of it.
func Saddr(p netip.Prefix) Rule    { return addrMatch(12, expr.CmpOpEq, p) }
func SaddrNot(p netip.Prefix) Rule { return addrMatch(12, expr.CmpOpNeq, p) }
func Daddr(p netip.Prefix) Rule    { return addrMatch(16, expr.CmpOpEq, p) }
func DaddrNot(p netip.Prefix) Rule { return addrMatch(16, expr.CmpOpNeq, p) }

// DaddrLocal matches packets to an address of this machine.
func DaddrLocal() Rule {
	return Rule{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		cmp(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
	}
}

// NoWayBack matches packets whose source is not routed to the interface they came from.
func NoWayBack() Rule {
	return Rule{&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, cmp(expr.CmpOpEq, make([]byte, 4))}
}

// L4 matches the transport protocol.
func L4(proto byte) Rule {
	return Rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, cmp(expr.CmpOpEq, []byte{proto})}
}

// Dport matches the destination port of a packet whose protocol was matched before.
func Dport(port uint16) Rule {
	return Rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		cmp(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)),
	}
}

// DportRange matches destination ports from first to last.
func DportRange(first, last uint16) Rule {
	return Rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(first), ToData: binaryutil.BigEndian.PutUint16(last)},
	}
}

func ctBits(key expr.CtKey, bits uint32) Rule {
	return Rule{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		cmp(expr.CmpOpNeq, make([]byte, 4)),
	}
}

// Established matches replies and packets of known connections.
func Established() Rule {
	return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// New matches the first packet of a connection.
func New() Rule { return ctBits(expr.CtKeySTATE, expr.CtStateBitNEW) }

// DNATed matches connections whose destination was translated, by whomever.
func DNATed() Rule { return ctBits(expr.CtKeySTATUS, 1<<5) } // IPS_DST_NAT

// Key loads one part of a packet into a register for a lookup.
type Key struct {
	load  func(reg uint32) expr.Any
	words uint32
}

func payload(base expr.PayloadBase, offset, length uint32) Key {
	return Key{func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}
	}, 1}
}

func meta(key expr.MetaKey, words uint32) Key {
	return Key{func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }, words}
}

// KeySaddr and the others are the parts of packets that sets are asked about.
func KeySaddr() Key { return payload(expr.PayloadBaseNetworkHeader, 12, 4) }
func KeyDaddr() Key { return payload(expr.PayloadBaseNetworkHeader, 16, 4) }
func KeyDport() Key { return payload(expr.PayloadBaseTransportHeader, 2, 2) }
func KeyProto() Key { return meta(expr.MetaKeyL4PROTO, 1) }
func KeyIIf() Key   { return meta(expr.MetaKeyIIFNAME, 4) }
func KeyOIf() Key   { return meta(expr.MetaKeyOIFNAME, 4) }

// KeyRandom is a number from 0 to mod-1.
func KeyRandom(mod uint32) Key {
	return Key{func(reg uint32) expr.Any {
		return &expr.Numgen{Register: reg, Modulus: mod, Type: unix.NFT_NG_RANDOM}
	}, 1}
}

const firstReg = 8 // NFT_REG32_00: the first of sixteen registers of four bytes

func load(keys []Key) Rule {
	var r Rule
	reg := uint32(firstReg)
	for _, k := range keys {
		r = append(r, k.load(reg))
		reg += k.words
	}
	return r
}

// In matches packets whose keys are in the set.
func In(s *nftables.Set, keys ...Key) Rule {
	return append(load(keys), &expr.Lookup{SourceRegister: firstReg, SetName: s.Name})
}

// NotIn matches packets whose keys are not in the set.
func NotIn(s *nftables.Set, keys ...Key) Rule {
	return append(load(keys), &expr.Lookup{SourceRegister: firstReg, SetName: s.Name, Invert: true})
}

// Vmap takes the verdict that the map holds for the keys, if any.
func Vmap(s *nftables.Set, keys ...Key) Rule {
	return append(load(keys), &expr.Lookup{SourceRegister: firstReg, SetName: s.Name, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT})
}

// DNATBy translates the destination to the address and port that the map holds for the keys.
func DNATBy(s *nftables.Set, keys ...Key) Rule {
	return append(load(keys),
		&expr.Lookup{SourceRegister: firstReg, SetName: s.Name, IsDestRegSet: true, DestRegister: firstReg},
		dnatFromRegisters())
}

// DNATAddrBy translates the destination address only.
func DNATAddrBy(s *nftables.Set, keys ...Key) Rule {
	return append(load(keys),
		&expr.Lookup{SourceRegister: firstReg, SetName: s.Name, IsDestRegSet: true, DestRegister: firstReg},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: firstReg})
}

// DNAT translates the destination to one address and port.
func DNAT(to netip.AddrPort) Rule {
	a := to.Addr().As4()
	return Rule{
		&expr.Immediate{Register: 1, Data: a[:]},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// Sticky translates the destination of a known client to what the map remembers for its
// address, if that is still among the live targets; the memory starts anew.
func Sticky(memory, live *nftables.Set) Rule {
	const client = firstReg + 4
	return Rule{
		KeySaddr().load(client),
		&expr.Lookup{SourceRegister: client, SetName: memory.Name, IsDestRegSet: true, DestRegister: firstReg},
		&expr.Lookup{SourceRegister: firstReg, SetName: live.Name},
		remember(memory, client),
		dnatFromRegisters(),
	}
}

const dynsetDelete = 2 // NFT_DYNSET_OP_DELETE, which x/sys/unix lacks

// StickTo translates the destination to what the map holds for the keys, and remembers it
// for the client's address. What was remembered goes first: an update of an element that
// exists renews its time and leaves its value.
func StickTo(memory, targets *nftables.Set, keys ...Key) Rule {
	const client = firstReg + 4
	return append(load(keys),
		&expr.Lookup{SourceRegister: firstReg, SetName: targets.Name, IsDestRegSet: true, DestRegister: firstReg},
		KeySaddr().load(client),
		&expr.Dynset{SrcRegKey: client, SrcRegData: firstReg, SetName: memory.Name, Operation: dynsetDelete},
		remember(memory, client),
		dnatFromRegisters())
}

func remember(memory *nftables.Set, client uint32) expr.Any {
	return &expr.Dynset{SrcRegKey: client, SrcRegData: firstReg, SetName: memory.Name, Operation: unix.NFT_DYNSET_OP_UPDATE}
}

func dnatFromRegisters() expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: firstReg, RegProtoMin: firstReg + 1}
}

func verdict(kind expr.VerdictKind, chain string) Rule {
	return Rule{&expr.Verdict{Kind: kind, Chain: chain}}
}

// Verdicts.
func Accept() Rule           { return verdict(expr.VerdictAccept, "") }
func Drop() Rule             { return verdict(expr.VerdictDrop, "") }
func Return() Rule           { return verdict(expr.VerdictReturn, "") }
func Jump(chain string) Rule { return verdict(expr.VerdictJump, chain) }
func Goto(chain string) Rule { return verdict(expr.VerdictGoto, chain) }

// Masquerade gives packets the address of the interface they leave by.
func Masquerade() Rule { return Rule{&expr.Masq{}} }

// RejectTCP answers with a reset; RejectICMP with "port unreachable".
func RejectTCP() Rule { return Rule{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }
func RejectICMP() Rule {
	return Rule{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}
}

// Pad joins values to one key or data of a concatenated type, each padded to four bytes.
func Pad(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// AddrBytes and PortBytes are values as sets hold them.
func AddrBytes(a netip.Addr) []byte { b := a.As4(); return b[:] }
func PortBytes(p uint16) []byte     { return binaryutil.BigEndian.PutUint16(p) }

// Range is the pair of elements that an interval set needs for a prefix.
func Range(p netip.Prefix) []nftables.SetElement {
	first := p.Masked().Addr().As4()
	end := binary.BigEndian.Uint32(first[:]) + uint32(1)<<(32-p.Bits())
	return []nftables.SetElement{{Key: first[:]}, {Key: binaryutil.BigEndian.PutUint32(end), IntervalEnd: true}}
}

// ProtoNumber is the protocol number of tcp or udp.
func ProtoNumber(name string) (byte, error) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	}
	return 0, fmt.Errorf("protocol %q is not supported: use tcp or udp", name)
}
