package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"slipway.dev/slipway/engine/tree"
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
	if err := tree.Remove(filepath.Join(d.Root, volume)); err != nil {
		return fmt.Errorf("remove volume %q: %w", volume, err)
	}
	return nil
}
