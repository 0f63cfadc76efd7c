package buildcontext

import (
	"archive/tar"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Entry is one file of a tree as its archive described it.
type Entry struct {
	Path   string        `json:"p"` // relative, slash-separated, clean
	Mode   uint32        `json:"m"` // as in stat(2): type and permissions
	Size   int64         `json:"s,omitempty"`
	Time   time.Time     `json:"t,omitzero"`
	Link   string        `json:"l,omitempty"` // symbolic link target
	Digest digest.Digest `json:"d,omitempty"` // content of a regular file
}

// IsDir reports whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsSymlink reports whether the entry is a symbolic link.
func (e Entry) IsSymlink() bool { return e.Mode&unix.S_IFMT == unix.S_IFLNK }

// Index lists a tree in the order a walk meets it: parents before children, siblings by
// name. It is filled by Extract and immutable afterwards.
type Index struct {
	Entries []Entry `json:"entries"`

	byPath map[string]Entry // while it is filled
}

// NewIndex returns an empty index for Extract to fill.
func NewIndex() *Index { return &Index{byPath: map[string]Entry{}} }

func (x *Index) add(e Entry) { x.byPath[e.Path] = e }

// link records name as one more name of target.
func (x *Index) link(name, target string) {
	e := x.byPath[target]
	e.Path = name
	x.byPath[name] = e
}

func (x *Index) removeTree(name string) {
	for p := range x.byPath {
		if p == name || strings.HasPrefix(p, name+"/") {
			delete(x.byPath, p)
		}
	}
}

func (x *Index) finish() {
	x.Entries = make([]Entry, 0, len(x.byPath))
	for _, e := range x.byPath {
		x.Entries = append(x.Entries, e)
	}
	x.byPath = nil
	slices.SortFunc(x.Entries, func(a, b Entry) int { return ComparePaths(a.Path, b.Path) })
}

// Lookup returns the entry of a clean relative path.
func (x *Index) Lookup(p string) (Entry, bool) {
	i, ok := slices.BinarySearchFunc(x.Entries, p, func(e Entry, p string) int { return ComparePaths(e.Path, p) })
	if !ok {
		return Entry{}, false
	}
	return x.Entries[i], true
}

// Bytes is the content of all regular files.
func (x *Index) Bytes() int64 {
	var n int64
	for _, e := range x.Entries {
		n += e.Size
	}
	return n
}

// Filter returns an index of the entries that keep accepts.
func (x *Index) Filter(keep func(Entry) (bool, error)) (*Index, error) {
	out := &Index{}
	for _, e := range x.Entries {
		ok, err := keep(e)
		if err != nil {
			return nil, err
		}
		if ok {
			out.Entries = append(out.Entries, e)
		}
	}
	return out, nil
}

// ComparePaths orders paths as a depth-first walk does: a separator sorts before every
// other byte, so that "a/b" comes before "a-b".
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

func entryOf(hdr *tar.Header, name string, sum digest.Digest) Entry {
	e := Entry{Path: path.Clean(name), Mode: uint32(hdr.Mode) & 0o7777, Time: hdr.ModTime, Digest: sum}
	switch hdr.Typeflag {
	case tar.TypeDir:
		e.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		// Linux has no mode of its own for a link; archives carry what their maker had.
		e.Mode, e.Link = unix.S_IFLNK|0o777, hdr.Linkname
	case tar.TypeChar:
		e.Mode |= unix.S_IFCHR
	case tar.TypeBlock:
		e.Mode |= unix.S_IFBLK
	case tar.TypeFifo:
		e.Mode |= unix.S_IFIFO
	default:
		e.Mode |= unix.S_IFREG
		e.Size = hdr.Size
	}
	return e
}
