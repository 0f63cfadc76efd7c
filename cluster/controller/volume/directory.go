package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Directory is Storage below one directory of this machine, which is the node of that name.
type Directory struct {
	Root string
	Node string
}

// Path is the volume's directory below the root.
func (d Directory) Path(volume string) (path, node string) {
	return filepath.Join(d.Root, volume), d.Node
}

// Remove deletes the volume's directory.
func (d Directory) Remove(_ context.Context, volume string) error {
	if !strings.HasPrefix(volume, provisionPrefix) || volume != filepath.Base(volume) {
		return fmt.Errorf("volume %q was not made by this cluster: remove its data by hand", volume)
	}
	// Root keeps the removal from following links that a workload has left behind.
	root, err := os.OpenRoot(d.Root)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove volume %q: %w", volume, err)
	}
	defer root.Close()
	if err := root.RemoveAll(volume); err != nil {
		return fmt.Errorf("remove volume %q: %w", volume, err)
	}
	return nil
}
