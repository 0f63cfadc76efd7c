package buildcontext

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"
)

func chmod(p string, mode uint32) error {
	if err := unix.Chmod(p, mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: p, Err: err}
	}
	return nil
}

// IgnorePatterns reads the patterns that apply to dir when it is built with the named
// Dockerfile: <Dockerfile>.dockerignore where it exists, else .dockerignore.
func IgnorePatterns(dir, dockerfile string) ([]string, error) {
	for _, name := range []string{dockerfile + ".dockerignore", ".dockerignore"} {
		p := name
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, name)
		}
		f, err := os.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		return patterns, nil
	}
	return nil, nil
}

// Pack writes dir as a tar archive that Ingest accepts, leaving out what the ignore
// patterns name. The Dockerfile and the ignore files always travel, as the daemon needs
// them; it applies the patterns once more when it reads files. Equal directories give
// equal archives, so an unchanged context keeps its name.
func Pack(ctx context.Context, w io.Writer, dir, dockerfile string) error {
	patterns, err := IgnorePatterns(dir, dockerfile)
	if err != nil {
		return err
	}
	if len(patterns) > 0 {
		patterns = append(patterns, "!"+dockerfile, "!"+dockerfile+".dockerignore", "!.dockerignore")
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return fmt.Errorf("read .dockerignore: %w", err)
	}
	p := &packer{ctx: ctx, dir: dir, match: m, tw: tar.NewWriter(w)}
	if err := filepath.WalkDir(dir, p.visit); err != nil {
		return fmt.Errorf("pack build context %s: %w", dir, err)
	}
	return p.tw.Close()
}

type packer struct {
	ctx   context.Context
	dir   string
	match *patternmatcher.PatternMatcher
	tw    *tar.Writer
}

func (p *packer) visit(full string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	rel, err := filepath.Rel(p.dir, full)
	if err != nil || rel == "." {
		return err
	}
	rel = filepath.ToSlash(rel)
	skip, err := p.match.MatchesOrParentMatches(rel)
	if err != nil {
		return err
	}
	if skip {
		if d.IsDir() && !p.mayReturn(rel) {
			return filepath.SkipDir
		}
		return nil // a directory that is needed after all is remade by what lies below it
	}
	return p.store(full, rel, d)
}

// mayReturn reports whether a "!" pattern could bring back something below dir.
func (p *packer) mayReturn(dir string) bool {
	if !p.match.Exclusions() {
		return false
	}
	for _, pattern := range p.match.Patterns() {
		if !pattern.Exclusion() {
			continue
		}
		s := path.Clean(pattern.String())
		if strings.ContainsAny(s, "*?[") || strings.HasPrefix(s+"/", dir+"/") {
			return true
		}
	}
	return false
}

func (p *packer) store(full, rel string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	if fi.Mode()&(os.ModeSocket|os.ModeDevice|os.ModeNamedPipe) != 0 {
		return nil // nothing a build could copy; Docker leaves sockets out too
	}
	target := ""
	if fi.Mode()&os.ModeSymlink != 0 {
		if target, err = os.Readlink(full); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	hdr.Name = rel
	if fi.IsDir() {
		hdr.Name += "/"
	}
	hdr.Uid, hdr.Gid, hdr.Uname, hdr.Gname = 0, 0, "", ""
	// Reading a file changes these, and they would change the context's name.
	hdr.AccessTime, hdr.ChangeTime = time.Time{}, time.Time{}
	hdr.Format = tar.FormatPAX
	if err := p.tw.WriteHeader(hdr); err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(p.tw, f, hdr.Size); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", rel, err)
	}
	return nil
}
