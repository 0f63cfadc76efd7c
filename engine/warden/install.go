package warden

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// InitTarget is where a container's init has to be: by the name docker-init the warden's program is one.
const InitTarget = "/sbin/docker-init"

// InstallInit puts the init of containers (docker run --init) at path: a copy of the warden's program, which is that init
// when it is executed as InitTarget. It is static, and of its megabytes only the first few pages are ever read. A copy, so
// that no container has a hand on the original and an upgrade need not wait for containers to end.
func InstallInit(executable, path string) error {
	source, err := os.Open(executable)
	if err != nil {
		return fmt.Errorf("install the init of containers: %w", err)
	}
	defer source.Close()
	st, err := source.Stat()
	if err != nil {
		return fmt.Errorf("install the init of containers: %w", err)
	}
	if old, err := os.Stat(path); err == nil && old.Size() == st.Size() && old.ModTime().Equal(st.ModTime()) {
		return nil
	}
	if err := replaceFile(source, st, path); err != nil {
		return fmt.Errorf("install the init of containers: %w", err)
	}
	return nil
}

// replaceFile copies source to path, with its time. What runs from the old file goes on.
func replaceFile(source io.Reader, st os.FileInfo, path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".init-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, source)
	err = errors.Join(err, f.Chmod(0o555), f.Close(), os.Chtimes(f.Name(), st.ModTime(), st.ModTime()))
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
