package openapi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
)

// The types are kept in a form of their own because every general one is slow to read: the
// YAML that client-go ships takes 230 ms, this a few. It is a table of strings followed by
// the types in depth-first order; numbers are varints, strings are indexes into the table.

// which parts of an atom or reference follow, as bits
const (
	hasScalar = 1 << iota
	hasList
	hasMap
	hasName
	hasRelationship
	isNullable
)

type encoder struct {
	index map[string]uint64
	table []string
	out   []byte
}

// EncodeTypes writes types for DecodeTypes.
func EncodeTypes(types []schema.TypeDef) ([]byte, error) {
	e := &encoder{index: map[string]uint64{}}
	e.uint(uint64(len(types)))
	for i := range types {
		e.string(types[i].Name)
		if err := e.atom(&types[i].Atom, 0); err != nil {
			return nil, fmt.Errorf("type %s: %w", types[i].Name, err)
		}
	}
	head := binary.AppendUvarint(nil, uint64(len(e.table)))
	for _, s := range e.table {
		head = append(binary.AppendUvarint(head, uint64(len(s))), s...)
	}
	return append(head, e.out...), nil
}

func (e *encoder) uint(n uint64) { e.out = binary.AppendUvarint(e.out, n) }

func (e *encoder) string(s string) {
	i, ok := e.index[s]
	if !ok {
		i = uint64(len(e.table))
		e.index[s] = i
		e.table = append(e.table, s)
	}
	e.uint(i)
}

func (e *encoder) atom(a *schema.Atom, flags uint64) error {
	if a.Scalar != nil {
		flags |= hasScalar
	}
	if a.List != nil {
		flags |= hasList
	}
	if a.Map != nil {
		flags |= hasMap
	}
	e.uint(flags)
	if a.Scalar != nil {
		e.string(string(*a.Scalar))
	}
	if a.List != nil {
		if err := e.list(a.List); err != nil {
			return err
		}
	}
	if a.Map != nil {
		return e.mapping(a.Map)
	}
	return nil
}

func (e *encoder) list(l *schema.List) error {
	e.string(string(l.ElementRelationship))
	e.uint(uint64(len(l.Keys)))
	for _, k := range l.Keys {
		e.string(k)
	}
	return e.ref(&l.ElementType)
}

func (e *encoder) mapping(m *schema.Map) error {
	if len(m.Unions) > 0 {
		return errors.New("unions are not supported by this encoding")
	}
	e.string(string(m.ElementRelationship))
	e.uint(uint64(len(m.Fields)))
	for i := range m.Fields {
		f := &m.Fields[i]
		e.string(f.Name)
		def := ""
		if f.Default != nil {
			b, err := json.Marshal(f.Default)
			if err != nil {
				return err
			}
			def = string(b)
		}
		e.string(def)
		if err := e.ref(&f.Type); err != nil {
			return fmt.Errorf("field %s: %w", f.Name, err)
		}
	}
	return e.ref(&m.ElementType)
}

func (e *encoder) ref(r *schema.TypeRef) error {
	var flags uint64
	if r.NamedType != nil {
		flags |= hasName
	}
	if r.ElementRelationship != nil {
		flags |= hasRelationship
	}
	if r.Nullable {
		flags |= isNullable
	}
	if err := e.atom(&r.Inlined, flags); err != nil {
		return err
	}
	if r.NamedType != nil {
		e.string(*r.NamedType)
	}
	if r.ElementRelationship != nil {
		e.string(string(*r.ElementRelationship))
	}
	return nil
}

type decoder struct {
	in    []byte
	table []string
	err   error
}

var errTypes = errors.New("openapi: the embedded types are damaged")

// DecodeTypes reads what EncodeTypes has written.
func DecodeTypes(data []byte) ([]schema.TypeDef, error) {
	d := &decoder{in: data}
	d.table = make([]string, d.count())
	for i := range d.table {
		n := d.count()
		if d.err != nil {
			return nil, d.err
		}
		d.table[i], d.in = string(d.in[:n]), d.in[n:]
	}
	types := make([]schema.TypeDef, d.count())
	for i := range types {
		types[i].Name = d.string()
		d.atom(&types[i].Atom)
	}
	if d.err == nil && len(d.in) > 0 {
		d.err = errTypes
	}
	return types, d.err
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.in)
	if size <= 0 {
		d.err = errTypes
		d.in = nil
		return 0
	}
	d.in = d.in[size:]
	return n
}

// count is a number of things that each take at least a byte.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.in)) {
		d.err = errTypes
		return 0
	}
	return int(n)
}

func (d *decoder) string() string {
	i := d.uint()
	if i >= uint64(len(d.table)) {
		d.err = errTypes
		return ""
	}
	return d.table[i]
}

func (d *decoder) atom(a *schema.Atom) uint64 {
	flags := d.uint()
	if flags&hasScalar != 0 {
		s := schema.Scalar(d.string())
		a.Scalar = &s
	}
	if flags&hasList != 0 {
		a.List = &schema.List{}
		d.list(a.List)
	}
	if flags&hasMap != 0 {
		a.Map = &schema.Map{}
		d.mapping(a.Map)
	}
	return flags
}

func (d *decoder) list(l *schema.List) {
	l.ElementRelationship = schema.ElementRelationship(d.string())
	if n := d.count(); n > 0 {
		l.Keys = make([]string, n)
		for i := range l.Keys {
			l.Keys[i] = d.string()
		}
	}
	d.ref(&l.ElementType)
}

func (d *decoder) mapping(m *schema.Map) {
	m.ElementRelationship = schema.ElementRelationship(d.string())
	if n := d.count(); n > 0 {
		m.Fields = make([]schema.StructField, n)
	}
	for i := range m.Fields {
		if d.err != nil {
			return
		}
		f := &m.Fields[i]
		f.Name = d.string()
		if def := d.string(); def != "" {
			if err := json.Unmarshal([]byte(def), &f.Default); err != nil {
				d.err = errTypes
			}
		}
		d.ref(&f.Type)
	}
	d.ref(&m.ElementType)
}

func (d *decoder) ref(r *schema.TypeRef) {
	if d.err != nil {
		return
	}
	flags := d.atom(&r.Inlined)
	r.Nullable = flags&isNullable != 0
	if flags&hasName != 0 {
		s := d.string()
		r.NamedType = &s
	}
	if flags&hasRelationship != 0 {
		s := schema.ElementRelationship(d.string())
		r.ElementRelationship = &s
	}
}
