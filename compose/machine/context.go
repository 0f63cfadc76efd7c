package machine

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/patternmatcher/ignorefile"
)

// Context tars a build context, leaving out what its .dockerignore names. dockerfile is a path, relative
// to dir or absolute; inline, when not empty, is the Dockerfile itself. name is what the Dockerfile is
// called in the tar.
func Context(dir, dockerfile, inline string) (r io.ReadCloser, name string, err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, "", fmt.Errorf("build context: %w", err)
	}
	if !info.IsDir() {
		return nil, "", fmt.Errorf("build context %s is not a directory", dir)
	}
	if dockerfile == "" {
		dockerfile = "Dockerfile"
	}
	if !filepath.IsAbs(dockerfile) {
		dockerfile = filepath.Join(dir, dockerfile)
	}
	content := []byte(inline)
	if inline == "" {
		if content, err = os.ReadFile(dockerfile); err != nil {
			return nil, "", fmt.Errorf("read the Dockerfile: %w", err)
		}
	}
	name, err = filepath.Rel(dir, dockerfile)
	outside := err != nil || !filepath.IsLocal(name)
	excludes, err := ignored(dir, dockerfile)
	if err != nil {
		return nil, "", err
	}
	if outside || inline != "" {
		// It travels under a name that no COPY of a sane context asks for.
		name = ".slipway.Dockerfile"
	} else {
		excludes = append(excludes, "!"+filepath.ToSlash(name), "!.dockerignore")
	}
	plain, err := archive.TarWithOptions(dir, &archive.TarOptions{ExcludePatterns: excludes})
	if err != nil {
		return nil, "", fmt.Errorf("build context: %w", err)
	}
	if !outside && inline == "" {
		return plain, filepath.ToSlash(name), nil
	}
	return withFile(plain, name, content), name, nil
}

// ignored reads the Dockerfile's own ignore file, or else the context's.
func ignored(dir, dockerfile string) ([]string, error) {
	for _, p := range []string{dockerfile + ".dockerignore", filepath.Join(dir, ".dockerignore")} {
		f, err := os.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		for i, pattern := range patterns {
			negated := strings.HasPrefix(pattern, "!")
			clean := path.Clean(strings.TrimPrefix(pattern, "!"))
			if negated {
				clean = "!" + clean
			}
			patterns[i] = clean
		}
		return patterns, nil
	}
	return nil, nil
}

// withFile is a tar stream with one more file at its end.
func withFile(in io.ReadCloser, name string, content []byte) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() {
		defer in.Close()
		pw.CloseWithError(func() error {
			tr, tw := tar.NewReader(in), tar.NewWriter(pw)
			for {
				h, err := tr.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return err
				}
				if err := tw.WriteHeader(h); err != nil {
					return err
				}
				if _, err := io.Copy(tw, tr); err != nil {
					return err
				}
			}
			if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
				return err
			}
			if _, err := tw.Write(content); err != nil {
				return err
			}
			return tw.Close()
		}())
	}()
	return pr
}
