package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// opener opens regular files of a container's root file system, and refuses others.
type opener interface {
	open(path string) (*os.File, error)
}

// lookupUser turns "", "uid", "name" or "user:group" and extra groups into numbers, by
// the passwd and group files of the root file system; both may be absent. strict leaves out
// the groups that only the image puts the user in.
func lookupUser(root opener, name string, extra []string, strict bool) (specs.User, error) {
	passwd, err := readAccounts(root, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := readAccounts(root, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	u, err := user.GetExecUser(name, nil, strings.NewReader(passwd), strings.NewReader(group))
	if err != nil {
		return specs.User{}, userError(name, err)
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	// The primary group is listed too: a program that drops it by setgid must not lose
	// what belongs to it (CVE-2022-36109).
	out.AdditionalGids = []uint32{out.GID}
	seen := map[uint32]bool{out.GID: true}
	add := func(gids []int) {
		for _, g := range gids {
			if !seen[uint32(g)] {
				seen[uint32(g)] = true
				out.AdditionalGids = append(out.AdditionalGids, uint32(g))
			}
		}
	}
	if !strict {
		add(u.Sgids)
	}
	if len(extra) > 0 {
		gids, err := user.GetAdditionalGroups(extra, strings.NewReader(group))
		if err != nil {
			return specs.User{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("group-add: %v", err))
		}
		add(gids)
	}
	return out, nil
}

func userError(name string, err error) error {
	if errors.Is(err, user.ErrNoPasswdEntries) || errors.Is(err, user.ErrNoGroupEntries) {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error()) // it names the user or the group
	}
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("user %q: %v", name, err))
}

// readAccounts reads a small file; one that does not exist, or that the image made into
// something else, is as good as empty.
func readAccounts(root opener, path string) (string, error) {
	f, err := root.open(path)
	if err != nil {
		var pe *fs.PathError
		if errors.Is(err, fs.ErrNotExist) || errors.As(err, &pe) {
			return "", nil
		}
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	return string(b), err
}
