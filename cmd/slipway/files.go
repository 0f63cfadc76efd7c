package main

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func (c *cli) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "Show which files a container has changed", GroupID: groupContainers,
		Args: exactly(1, "a container"), ValidArgsFunction: c.completeContainers(false, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []container.FilesystemChange
			if err := c.client.get(cmd.Context(), containerPath(args[0], "/changes"), nil, &list); err != nil {
				return err
			}
			for _, change := range list {
				fmt.Fprintln(c.out, change.Kind, change.Path)
			}
			return nil
		},
	}
}

func (c *cli) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export CONTAINER", Short: "Write a container's files to a tar", GroupID: groupContainers,
		Args: exactly(1, "a container"), ValidArgsFunction: c.completeContainers(false, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.download(cmd.Context(), call{method: "GET", path: containerPath(args[0], "/export")}, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to a `FILE` instead of standard output")
	return cmd
}

func (c *cli) commitCommand() *cobra.Command {
	var author, comment string
	var changes []string
	var pause bool
	cmd := &cobra.Command{
		Use: "commit CONTAINER [NAME[:TAG]]", Short: "Make an image of a container", GroupID: groupContainers,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeContainers(false, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"container": {args[0]}, "author": {author}, "comment": {comment}, "changes": changes}
			if len(args) == 2 {
				repo, tag, err := splitTag(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", repo)
				q.Set("tag", tag)
			}
			if !pause {
				q.Set("pause", "0")
			}
			var created common.IDResponse
			if err := c.client.post(cmd.Context(), "/commit", q, nil, &created); err != nil {
				return err
			}
			fmt.Fprintln(c.out, created.ID)
			return nil
		},
	}
	cmd.Flags().StringVarP(&author, "author", "a", "", "author")
	cmd.Flags().StringVarP(&comment, "message", "m", "", "comment")
	cmd.Flags().StringArrayVarP(&changes, "change", "c", nil, "apply a Dockerfile instruction")
	cmd.Flags().BoolVarP(&pause, "pause", "p", true, "pause the container meanwhile")
	return cmd
}

func (c *cli) cpCommand() *cobra.Command {
	var follow, archive, quiet bool
	cmd := &cobra.Command{
		Use: "cp CONTAINER:PATH PATH|- | cp PATH|- CONTAINER:PATH", Short: "Copy files between a container and here", GroupID: groupContainers,
		Example: "  slipway cp web:/etc/nginx/nginx.conf .\n  slipway cp site/. web:/srv/www\n  slipway cp web:/var/log - | tar -t",
		Args:    exactly(2, "a source and a destination"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, fromPath := splitCopy(args[0])
			to, toPath := splitCopy(args[1])
			switch {
			case from != "" && to != "":
				return usageError{errors.New("copying between containers is not supported")}
			case from != "":
				return c.copyOut(cmd.Context(), from, fromPath, toPath, follow)
			case to != "":
				return c.copyIn(cmd.Context(), fromPath, to, toPath, follow, archive)
			}
			return usageError{errors.New("must specify at least one container source")}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow-link", "L", false, "copy what a link points to")
	cmd.Flags().BoolVarP(&archive, "archive", "a", false, "keep owners")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "")
	_ = cmd.Flags().MarkHidden("quiet")
	return cmd
}

// splitCopy takes CONTAINER:PATH apart; a name with a slash or dot before the colon is a path here.
func splitCopy(arg string) (name, p string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	name, p, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(name, ".") || strings.Contains(name, "/") {
		return "", arg
	}
	return name, p
}

// pathStat decodes what the daemon says about a path in a container.
func pathStat(header string) (st container.PathStat, err error) {
	raw, err := base64.StdEncoding.DecodeString(header)
	if err == nil {
		err = json.Unmarshal(raw, &st)
	}
	if err != nil {
		return st, fmt.Errorf("read the daemon's description of the path: %w", err)
	}
	return st, nil
}

const pathStatHeader = "X-Docker-Container-Path-Stat"

func (c *cli) statPath(ctx context.Context, name, p string) (container.PathStat, error) {
	resp, err := c.client.do(ctx, call{method: "HEAD", path: containerPath(name, "/archive"), query: url.Values{"path": {p}}})
	if err != nil {
		if isStatus(err, 404) { // a HEAD has no text
			return container.PathStat{}, &apiError{404, fmt.Sprintf("Could not find the file %s in container %s", p, name)}
		}
		return container.PathStat{}, err
	}
	defer resp.Body.Close()
	return pathStat(resp.Header.Get(pathStatHeader))
}

func (c *cli) copyOut(ctx context.Context, name, src, dst string, follow bool) error {
	if follow {
		st, err := c.statPath(ctx, name, src)
		if err != nil {
			return err
		}
		if st.Mode&fs.ModeSymlink != 0 {
			target := st.LinkTarget
			if !path.IsAbs(target) {
				target = path.Join(path.Dir(src), target)
			}
			src = target
		}
	}
	resp, err := c.client.do(ctx, call{method: "GET", path: containerPath(name, "/archive"), query: url.Values{"path": {src}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if dst == "-" {
		_, err := io.Copy(c.out, resp.Body)
		return err
	}
	st, err := pathStat(resp.Header.Get(pathStatHeader))
	if err != nil {
		return err
	}
	return unpackCopy(resp.Body, st, src, dst)
}

// unpackCopy writes a copied tree to dst, by docker's rules: into dst if that is a directory, as dst otherwise; SRC/. means
// the content of a directory.
func unpackCopy(r io.Reader, st container.PathStat, src, dst string) error {
	content := strings.HasSuffix(src, "/.")
	info, err := os.Stat(dst)
	exists := err == nil
	if exists && !info.IsDir() && st.Mode.IsDir() {
		return fmt.Errorf("cannot copy a directory to the file %s", dst)
	}
	if !exists && !st.Mode.IsDir() && strings.HasSuffix(dst, "/") {
		return fmt.Errorf("no such directory: %s", dst)
	}
	base, newName := dst, ""
	switch {
	case exists && info.IsDir():
		if content && st.Mode.IsDir() {
			base, newName = filepath.Dir(filepath.Clean(dst)), filepath.Base(filepath.Clean(dst))
		}
	default:
		base, newName = filepath.Dir(filepath.Clean(dst)), filepath.Base(filepath.Clean(dst))
	}
	if content && exists && info.IsDir() {
		return extract(r, dst, st.Name, ".")
	}
	root, err := os.Stat(base)
	if err != nil || !root.IsDir() {
		return fmt.Errorf("no such directory: %s", base)
	}
	return extract(r, base, st.Name, newName)
}

// extract unpacks a tar below dir, with its first path element old replaced by name (empty: kept). The archive is not trusted: os.Root
// lets nothing out of dir.
func extract(r io.Reader, dir, old, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the copy: %w", err)
		}
		if err := extractOne(root, in, h, renamed(h.Name, old, name), renamed(h.Linkname, old, name)); err != nil {
			return fmt.Errorf("copy %s: %w", h.Name, err)
		}
	}
}

func renamed(p, old, name string) string {
	p = path.Clean(p)
	if old == "." || old == "/" {
		return path.Join(".", name, p)
	}
	if name == "" {
		return p
	}
	rest, ok := strings.CutPrefix(p, old)
	if !ok || rest != "" && rest[0] != '/' {
		return p
	}
	return path.Join(name, rest)
}

func extractOne(root *os.Root, in io.Reader, h *tar.Header, name, link string) error {
	mode := h.FileInfo().Mode().Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		if name == "." {
			return nil
		}
		return root.Chmod(name, mode)
	case tar.TypeReg:
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if st, err := root.Lstat(name); err == nil && !st.Mode().IsRegular() {
			if err := root.Remove(name); err != nil {
				return err
			}
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		return errors.Join(err, f.Chmod(mode), f.Close(), root.Chtimes(name, h.ModTime, h.ModTime))
	case tar.TypeSymlink:
		_ = root.Remove(name)
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		_ = root.Remove(name)
		return root.Link(link, name)
	}
	return nil // devices and fifos stay where they are
}

func (c *cli) copyIn(ctx context.Context, src, name, dst string, follow, archive bool) error {
	q := url.Values{}
	if archive {
		q.Set("copyUIDGID", "1")
	}
	k := call{method: "PUT", path: containerPath(name, "/archive"), query: q, media: "application/x-tar"}
	if src == "-" {
		q.Set("path", dst)
		k.stream = c.in
		return c.exchangeTar(ctx, k)
	}
	if follow {
		if resolved, err := filepath.EvalSymlinks(src); err == nil {
			if strings.HasSuffix(src, "/.") {
				resolved += "/."
			}
			src = resolved
		}
	}
	info, err := os.Lstat(src)
	if err != nil {
		return err
	}
	dir, as, err := c.destination(ctx, name, src, dst, info)
	if err != nil {
		return err
	}
	q.Set("path", dir)
	q.Set("noOverwriteDirNonDir", "1")
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(packCopy(w, src, as)) }()
	k.stream = r
	return c.exchangeTar(ctx, k)
}

func (c *cli) exchangeTar(ctx context.Context, k call) error { return c.client.exchange(ctx, k, nil) }

// destination decides which directory in the container receives a copy, and under which name.
func (c *cli) destination(ctx context.Context, name, src, dst string, info fs.FileInfo) (dir, as string, err error) {
	content := strings.HasSuffix(src, "/.") && info.IsDir()
	st, err := c.statPath(ctx, name, dst)
	if err == nil && st.Mode&fs.ModeSymlink != 0 {
		target := st.LinkTarget
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(dst), target)
		}
		dst = target
		st, err = c.statPath(ctx, name, dst)
	}
	if err != nil && !isStatus(err, 404) {
		return "", "", err
	}
	switch exists := err == nil; {
	case exists && st.Mode.IsDir() && content:
		return dst, ".", nil
	case exists && st.Mode.IsDir():
		return dst, filepath.Base(filepath.Clean(src)), nil
	case exists && info.IsDir():
		return "", "", fmt.Errorf("cannot copy a directory to the file %s:%s", name, dst)
	case !exists && !info.IsDir() && strings.HasSuffix(dst, "/"):
		return "", "", fmt.Errorf("no such directory: %s:%s", name, dst)
	}
	clean := path.Clean("/" + dst)
	return path.Dir(clean), path.Base(clean), nil
}

// packCopy writes src and what is below it as a tar in which it is called as.
func packCopy(out io.Writer, src, as string) error {
	w := tar.NewWriter(out)
	src = filepath.Clean(src)
	err := filepath.WalkDir(src, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return addCopied(w, p, path.Join(as, filepath.ToSlash(rel)), entry)
	})
	return errors.Join(err, w.Close())
}

func addCopied(w *tar.Writer, p, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil || info.Mode()&fs.ModeSocket != 0 {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return w.WriteHeader(h)
	}
	return copyFile(w, h, p)
}
