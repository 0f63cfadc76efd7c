package op

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/user"
)

// ids is a numeric owner.
type ids struct{ uid, gid int }

// maxUserFile bounds what is read of an image's /etc/passwd.
const maxUserFile = 10 << 20

// lookupUser finds a user's ids in the image at root.
func lookupUser(root, name string, out *ids) error {
	f, err := openUserFile(root, "/etc/passwd")
	if err != nil {
		return noUser("user", name, "/etc/passwd", err)
	}
	defer f.Close()
	users, err := user.ParsePasswdFilter(f, func(u user.User) bool { return u.Name == name })
	if err != nil || len(users) == 0 {
		return noUser("user", name, "/etc/passwd", err)
	}
	out.uid, out.gid = users[0].Uid, users[0].Gid
	return nil
}

func lookupGroup(root, name string, out *ids) error {
	f, err := openUserFile(root, "/etc/group")
	if err != nil {
		return noUser("group", name, "/etc/group", err)
	}
	defer f.Close()
	groups, err := user.ParseGroupFilter(f, func(g user.Group) bool { return g.Name == name })
	if err != nil || len(groups) == 0 {
		return noUser("group", name, "/etc/group", err)
	}
	out.gid = groups[0].Gid
	return nil
}

func noUser(kind, name, file string, err error) error {
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("look up %s %q: %w", kind, name, err)
	}
	return fmt.Errorf("%s %q is not in the image's %s: create it in an earlier RUN, or give a number", kind, name, file)
}

type limitedFile struct {
	io.Reader
	io.Closer
}

// openUserFile opens a file of the image as the image sees it. A fifo or device there
// must not hang the build.
func openUserFile(root, name string) (io.ReadCloser, error) {
	p, err := fs.RootPath(root, name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return limitedFile{io.LimitReader(f, maxUserFile), f}, nil
}
