package nft

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Model is the wanted content of one table. Its user changes the model; Commit sends
// the difference to what was last committed, in one transaction, and the whole table
// when the kernel's copy turns out to be another. Not safe for concurrent use.
type Model struct {
	conn  *Conn
	table *nftables.Table

	sets   map[string]*modelSet
	chains map[string]*modelChain

	dirtySets   map[string]bool
	dirtyChains map[string]bool
	stale       bool // the kernel does not have the table, or not this one
}

type modelSet struct {
	def   *nftables.Set
	elems map[string]nftables.SetElement
	was   map[string]nftables.SetElement // as committed; only keys that changed; zero Key: was absent
	made  bool
	gone  bool
}

type modelChain struct {
	hook  *Hook
	rules []Rule
	sig   []byte // as wanted
	was   []byte // as committed
	made  bool
	gone  bool
}

// NewModel starts an empty table; the first Commit replaces one of the same name.
func NewModel(conn *Conn, table string) *Model {
	return &Model{
		conn: conn, table: &nftables.Table{Name: table, Family: nftables.TableFamilyIPv4},
		sets: map[string]*modelSet{}, chains: map[string]*modelChain{},
		dirtySets: map[string]bool{}, dirtyChains: map[string]bool{}, stale: true,
	}
}

// Set declares a set or map, or returns the one that is declared under that name.
func (m *Model) Set(def nftables.Set) *nftables.Set {
	if s := m.sets[def.Name]; s != nil {
		s.gone = false
		return s.def
	}
	def.Table = m.table
	m.sets[def.Name] = &modelSet{def: &def, elems: map[string]nftables.SetElement{}, was: map[string]nftables.SetElement{}}
	m.dirtySets[def.Name] = true
	return &def
}

// DropSet removes a set; nothing in the model may refer to it any more.
func (m *Model) DropSet(name string) {
	if s := m.sets[name]; s != nil {
		for key := range s.elems {
			m.Delete(s.def, []byte(key))
		}
		s.gone = true
		m.dirtySets[name] = true
	}
}

// Put adds an element, or gives it another value.
func (m *Model) Put(set *nftables.Set, e nftables.SetElement) {
	s := m.sets[set.Name]
	if old, ok := s.elems[string(e.Key)]; ok && sameElement(old, e) {
		return
	}
	m.touch(s, string(e.Key))
	s.elems[string(e.Key)] = e
}

// Delete removes an element, if it is there.
func (m *Model) Delete(set *nftables.Set, key []byte) {
	s := m.sets[set.Name]
	if _, ok := s.elems[string(key)]; !ok {
		return
	}
	m.touch(s, string(key))
	delete(s.elems, string(key))
}

// Fill makes the set hold exactly these elements.
func (m *Model) Fill(set *nftables.Set, elems []nftables.SetElement) {
	want := make(map[string]bool, len(elems))
	for _, e := range elems {
		want[string(e.Key)] = true
		m.Put(set, e)
	}
	for key := range m.sets[set.Name].elems {
		if !want[key] {
			m.Delete(set, []byte(key))
		}
	}
}

func (m *Model) touch(s *modelSet, key string) {
	if _, noted := s.was[key]; !noted {
		s.was[key] = s.elems[key]
	}
	m.dirtySets[s.def.Name] = true
}

func sameElement(a, b nftables.SetElement) bool {
	if !bytes.Equal(a.Val, b.Val) || !bytes.Equal(a.KeyEnd, b.KeyEnd) || a.IntervalEnd != b.IntervalEnd {
		return false
	}
	if a.VerdictData == nil || b.VerdictData == nil {
		return a.VerdictData == b.VerdictData
	}
	return *a.VerdictData == *b.VerdictData
}

// Chain sets the rules of a chain; hook makes it a base chain.
func (m *Model) Chain(name string, hook *Hook, rules ...Rule) {
	c := m.chains[name]
	if c == nil {
		c = &modelChain{hook: hook}
		m.chains[name] = c
	}
	c.rules, c.sig, c.gone = rules, signature(rules), false
	m.dirtyChains[name] = true
}

// DropChain removes a chain; nothing in the model may lead to it any more.
func (m *Model) DropChain(name string) {
	if c := m.chains[name]; c != nil {
		c.rules, c.gone = nil, true
		m.dirtyChains[name] = true
	}
}

// signature tells rules apart: their netlink form.
func signature(rules []Rule) []byte {
	var b bytes.Buffer
	for _, r := range rules {
		for _, e := range r {
			data, err := expr.Marshal(byte(nftables.TableFamilyIPv4), e)
			fmt.Fprintf(&b, "%x %v,", data, err)
		}
		b.WriteByte(';')
	}
	return b.Bytes()
}

// GotoElement is a verdict map's element that leads to a chain.
func GotoElement(key []byte, chain string) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// Invalidate says that the kernel's table is not what was committed.
func (m *Model) Invalidate() { m.stale = true }

// Commit makes the kernel equal to the model.
func (m *Model) Commit() error {
	if !m.stale {
		if len(m.dirtySets) == 0 && len(m.dirtyChains) == 0 {
			return nil
		}
		if err := m.conn.Do(m.difference); err == nil {
			m.committed()
			return nil
		}
	}
	m.stale = true // somebody changed the table: write all of it
	if err := m.conn.Do(m.everything); err != nil {
		return fmt.Errorf("write nftables table %s: %w", m.table.Name, err)
	}
	m.stale = false
	m.committed()
	return nil
}

// Remove deletes the table from the kernel.
func (m *Model) Remove() error {
	m.stale = true
	return m.conn.DropTable(m.table.Name)
}

func (m *Model) committed() {
	for name := range m.dirtySets {
		s := m.sets[name]
		if s.gone {
			delete(m.sets, name)
			continue
		}
		s.made = true
		clear(s.was)
	}
	for name := range m.dirtyChains {
		c := m.chains[name]
		if c.gone {
			delete(m.chains, name)
			continue
		}
		c.made, c.was = true, c.sig
	}
	clear(m.dirtySets)
	clear(m.dirtyChains)
}

func (m *Model) everything(b *Batch) {
	b.NewTable(m.table.Name)
	for _, name := range slices.Sorted(maps.Keys(m.sets)) {
		if s := m.sets[name]; !s.gone {
			b.Set(s.def, nil)
		}
	}
	for name, c := range m.chains {
		if !c.gone {
			b.Chain(m.table, name, c.hook)
		}
	}
	for name, c := range m.chains {
		if !c.gone {
			b.Rules(&nftables.Chain{Name: name, Table: m.table}, c.rules...)
		}
	}
	for _, s := range m.sets {
		if !s.gone {
			b.Add(s.def, slices.Collect(maps.Values(s.elems)))
		}
	}
}

// difference sends changes in an order in which nothing refers to what is not there:
// declarations, departures of elements, rules, arrivals of elements, removals.
func (m *Model) difference(b *Batch) {
	for name := range m.dirtySets {
		if s := m.sets[name]; !s.made && !s.gone {
			b.Set(s.def, nil)
		}
	}
	for name := range m.dirtyChains {
		if c := m.chains[name]; !c.made && !c.gone {
			b.Chain(m.table, name, c.hook)
		}
	}
	for name := range m.dirtySets {
		b.Delete(m.sets[name].def, m.sets[name].departures())
	}
	for name := range m.dirtyChains {
		m.rewrite(b, name, m.chains[name])
	}
	for name := range m.dirtySets {
		b.Add(m.sets[name].def, m.sets[name].arrivals())
	}
	for name := range m.dirtyChains {
		if c := m.chains[name]; c.made && c.gone {
			b.DelChain(m.table, name)
		}
	}
	for name := range m.dirtySets {
		if s := m.sets[name]; s.made && s.gone {
			b.DelSet(s.def)
		}
	}
}

func (m *Model) rewrite(b *Batch, name string, c *modelChain) {
	if !c.gone && c.made && bytes.Equal(c.sig, c.was) {
		return
	}
	if c.made {
		b.FlushChain(m.table, name)
	}
	if !c.gone {
		b.Rules(&nftables.Chain{Name: name, Table: m.table}, c.rules...)
	}
}

func (s *modelSet) departures() []nftables.SetElement {
	var out []nftables.SetElement
	for key, old := range s.was {
		if old.Key == nil {
			continue
		}
		if now, ok := s.elems[key]; !ok || !sameElement(old, now) {
			out = append(out, old)
		}
	}
	return out
}

func (s *modelSet) arrivals() []nftables.SetElement {
	var out []nftables.SetElement
	for key, old := range s.was {
		if now, ok := s.elems[key]; ok && (old.Key == nil || !sameElement(old, now)) {
			out = append(out, now)
		}
	}
	return out
}
