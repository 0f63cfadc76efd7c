package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// allocator hands out the addresses of one range, each time the next one after the
// last: an address rests as long as possible before it is used again, so that
// neither conntrack nor a neighbour's ARP cache takes a new container for an old one.
// Not safe for concurrent use; the Manager's lock covers it.
type allocator struct {
	first, last uint32 // usable, inclusive
	next        uint32
	marked      uint32 // how many more may be taken before next has to be remembered again
	used        map[netip.Addr]bool
}

func number(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// lastOf is the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	return address(number(p.Masked().Addr()) + uint32(1)<<(32-p.Bits()) - 1)
}

// newAllocator covers part of subnet, without the subnet's own and broadcast addresses.
func newAllocator(subnet, part netip.Prefix) *allocator {
	a := &allocator{first: number(part.Masked().Addr()), last: number(lastOf(part)), used: map[netip.Addr]bool{}}
	a.first = max(a.first, number(subnet.Masked().Addr())+1)
	a.last = min(a.last, number(lastOf(subnet))-1)
	a.next = a.first
	return a
}

// take returns the next free address.
func (a *allocator) take() (netip.Addr, bool) {
	if a.last < a.first {
		return netip.Addr{}, false
	}
	size := uint64(a.last) - uint64(a.first) + 1
	for range size {
		addr := address(a.next)
		if a.next++; a.next > a.last {
			a.next = a.first
		}
		if !a.used[addr] {
			a.used[addr] = true
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// claim marks one address; false when it is taken.
func (a *allocator) claim(addr netip.Addr) bool {
	if a.used[addr] {
		return false
	}
	a.used[addr] = true
	return true
}

func (a *allocator) release(addr netip.Addr) { delete(a.used, addr) }

// resume continues at addr.
func (a *allocator) resume(addr netip.Addr) {
	if n := number(addr); n >= a.first && n <= a.last {
		a.next = n
	}
}

const markStep = 16

// mark says where to resume after a restart, and whether that has to be written down
// now: once every few addresses, and then that many ahead.
func (a *allocator) mark(exact bool) (at netip.Addr, due bool) {
	if exact {
		return address(a.next), true
	}
	if a.marked > 0 {
		a.marked--
		return at, false
	}
	a.marked = markStep - 1
	ahead := uint64(a.next) + markStep
	if ahead > uint64(a.last) {
		ahead = uint64(a.first) + min(ahead-uint64(a.last), uint64(a.last-a.first))
	}
	return address(uint32(ahead)), true
}

// freeSubnet finds the first range of the pools that touches none of taken.
func freeSubnet(pools []Pool, taken []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		step := uint64(1) << (32 - pool.Bits)
		end := uint64(number(lastOf(pool.Base)))
		for at := uint64(number(pool.Base.Masked().Addr())); at <= end; at += step {
			p := netip.PrefixFrom(address(uint32(at)), pool.Bits)
			if !overlapsAny(p, taken) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("all predefined address pools have been fully subnetted: remove unused networks, or name a subnet")
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if o.Overlaps(p) {
			return true
		}
	}
	return false
}

// defaultPools are Docker's, and then smaller ranges: Docker's are used up by 31 networks, which on a machine of
// many Compose projects is an error that nobody expects.
func defaultPools() []Pool {
	return []Pool{
		{netip.MustParsePrefix("172.17.0.0/16"), 16},
		{netip.MustParsePrefix("172.18.0.0/15"), 16},
		{netip.MustParsePrefix("172.20.0.0/14"), 16},
		{netip.MustParsePrefix("172.24.0.0/14"), 16},
		{netip.MustParsePrefix("172.28.0.0/14"), 16},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
		{netip.MustParsePrefix("10.176.0.0/16"), 24},
	}
}
