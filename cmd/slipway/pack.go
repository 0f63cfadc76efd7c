package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// readIgnore reads DOCKERFILE.dockerignore, or else .dockerignore.
func readIgnore(root, name, file string) ([]string, error) {
	candidates := []string{filepath.Join(root, name+".dockerignore"), filepath.Join(root, ".dockerignore")}
	if file != "" && file != "-" {
		candidates = append([]string{file + ".dockerignore"}, candidates...)
	}
	for _, path := range candidates {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return patterns, nil
	}
	return nil, nil
}

// packer makes a tar of a build context.
type packer struct {
	root   string            // empty: only extra
	ignore []string          // patterns of .dockerignore
	keep   []string          // sent even if ignored: the daemon needs them
	extra  map[string][]byte // files that are not in root
}

// open returns the tar, written while it is read. Closing it early ends the writing.
func (p *packer) open() io.ReadCloser {
	r, w := io.Pipe()
	go func() { // ends when all is written or the reader is closed
		w.CloseWithError(p.write(w))
	}()
	return r
}

func (p *packer) write(out io.Writer) error {
	buffered := bufio.NewWriterSize(out, 256<<10)
	w := tar.NewWriter(buffered)
	if p.root != "" {
		if err := p.walk(w); err != nil {
			return fmt.Errorf("send the build context: %w", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.extra)) {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(p.extra[name])), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(p.extra[name]); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buffered.Flush())
}

func (p *packer) walk(w *tar.Writer) error {
	matcher, err := patternmatcher.New(p.ignore)
	if err != nil {
		return fmt.Errorf(".dockerignore: %w", err)
	}
	// What matched a directory is handed down to what is in it.
	parents := map[string]patternmatcher.MatchInfo{}
	links := map[inode]string{}
	return filepath.WalkDir(p.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%w: name it in .dockerignore if it does not belong to the build", err)
			}
			return err
		}
		rel, err := filepath.Rel(p.root, path)
		if err != nil || rel == "." {
			return err
		}
		ignored, info, err := matcher.MatchesUsingParentResults(rel, parents[filepath.Dir(rel)])
		if err != nil {
			return err
		}
		if entry.IsDir() {
			parents[rel] = info
		}
		if ignored && !p.kept(rel) {
			if entry.IsDir() && !p.reaches(matcher, rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if _, replaced := p.extra[rel]; replaced {
			return nil
		}
		return addFile(w, path, rel, entry, links)
	})
}

func (p *packer) kept(rel string) bool { return slices.Contains(p.keep, filepath.ToSlash(rel)) }

// reaches is true when something below an ignored directory may not be ignored: a !pattern, or a file that is kept.
func (p *packer) reaches(m *patternmatcher.PatternMatcher, dir string) bool {
	below := dir + string(filepath.Separator)
	for _, k := range p.keep {
		if strings.HasPrefix(k, below) {
			return true
		}
	}
	if !m.Exclusions() {
		return false
	}
	for _, pattern := range m.Patterns() {
		if !pattern.Exclusion() {
			continue
		}
		text := pattern.String()
		if strings.HasPrefix(text+string(filepath.Separator), below) || strings.HasPrefix(below, text+string(filepath.Separator)) || strings.ContainsAny(text, "*?[") {
			return true
		}
	}
	return false
}

// inode tells files of one file system apart.
type inode struct{ dev, ino uint64 }

func addFile(w *tar.Writer, path, rel string, entry fs.DirEntry, links map[inode]string) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // has no meaning elsewhere
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name = filepath.ToSlash(rel)
	if info.IsDir() {
		h.Name += "/"
	}
	// The builder gives files to root, and a second's accuracy is what its cache keys are made of.
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Format = tar.FormatPAX
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && info.Mode().IsRegular() {
		key := inode{uint64(st.Dev), st.Ino}
		if first, seen := links[key]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[key] = h.Name
		}
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return w.WriteHeader(h)
	}
	return copyFile(w, h, path)
}

func copyFile(w *tar.Writer, h *tar.Header, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s shrank while it was read", path)
	}
	return err
}

// sniff tells whether a stream is a tar, compressed or not, and returns it whole.
func sniff(r io.Reader) (io.Reader, bool, error) {
	buffered := bufio.NewReaderSize(r, 1024)
	head, err := buffered.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	for _, magic := range [][]byte{{0x1f, 0x8b, 0x08}, []byte("BZh"), {0xfd, '7', 'z', 'X', 'Z', 0}, {0x28, 0xb5, 0x2f, 0xfd}} {
		if bytes.HasPrefix(head, magic) {
			return buffered, true, nil
		}
	}
	return buffered, len(head) == 512 && bytes.Equal(head[257:262], []byte("ustar")), nil
}
