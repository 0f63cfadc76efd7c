package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// dataLink is the name whose one rename switches a volume from one version to the next; programs
// know it from Kubernetes, and watch it.
const dataLink = "..data"

// writeAtomically makes dir hold exactly files. A reader sees all of the old version or all of the
// new one: files live in a timestamped directory, dataLink names the current one, and every visible
// name is a link through it. gid, when not negative, owns them. It does nothing when nothing changed.
func writeAtomically(dir string, files map[string]file, gid int) error {
	for name := range files {
		if !filepath.IsLocal(name) || strings.HasPrefix(name, "..") {
			return fmt.Errorf("volume file %q: the path must stay inside the volume", name)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, _ := os.Readlink(filepath.Join(dir, dataLink))
	if old != "" && holds(filepath.Join(dir, old), files) {
		return linkVisible(dir, files) // an agent may have ended just before it
	}
	next, err := os.MkdirTemp(dir, ".."+time.Now().UTC().Format("2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := fill(next, files, gid); err != nil {
		os.RemoveAll(next)
		return err
	}
	link := filepath.Join(dir, "..data_tmp")
	os.Remove(link)
	if err := os.Symlink(filepath.Base(next), link); err != nil {
		return err
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	if err := linkVisible(dir, files); err != nil {
		return err
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

func fill(dir string, files map[string]file, gid int) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(f.mode)
		if gid >= 0 {
			mode |= 0o440 // the group is meant to read it
		}
		if err := os.WriteFile(path, f.data, 0o600); err != nil {
			return err
		}
		if gid >= 0 {
			if err := os.Chown(path, -1, gid); err != nil {
				return err
			}
		}
		if err := os.Chmod(path, mode); err != nil { // WriteFile's mode goes through the umask
			return err
		}
	}
	return nil
}

// holds says whether a version directory has these files and no others.
func holds(dir string, files map[string]file) bool {
	found := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		f, ok := files[name]
		if !ok {
			return os.ErrNotExist
		}
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, f.data) {
			return os.ErrNotExist
		}
		found++
		return nil
	})
	return err == nil && found == len(files)
}

// linkVisible makes one link for each top name and removes those that are no longer there.
func linkVisible(dir string, files map[string]file) error {
	want := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if want[e.Name()] {
			delete(want, e.Name())
		} else if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for top := range want {
		if err := os.Symlink(filepath.Join(dataLink, top), filepath.Join(dir, top)); err != nil {
			return err
		}
	}
	return nil
}
