package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	accounts "github.com/moby/sys/user"
)

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

func number(s string) bool {
	_, err := strconv.ParseUint(s, 10, 31)
	return err == nil
}

// user turns a service's user, which may be a name that only its image knows, into numbers. read gives the
// image's files.
func user(spec string, read func(path string) ([]byte, error)) (string, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	uid, gid := name, group
	if spec != "" && !number(name) {
		u, err := account(name, read)
		if err != nil {
			return "", fmt.Errorf("user %q: %w", spec, err)
		}
		uid = strconv.Itoa(u.Uid)
		if !hasGroup {
			hasGroup, gid = true, strconv.Itoa(u.Gid)
		}
	}
	if hasGroup && !number(gid) {
		n, err := groupNumber(group, read)
		if err != nil {
			return "", fmt.Errorf("user %q: %w", spec, err)
		}
		gid = strconv.Itoa(n)
	}
	if !hasGroup {
		return uid, nil
	}
	return uid + ":" + gid, nil
}

func account(name string, read func(string) ([]byte, error)) (accounts.User, error) {
	raw, err := read("/etc/passwd")
	if err != nil {
		return accounts.User{}, fmt.Errorf("read /etc/passwd of the image: %w", err)
	}
	found, err := accounts.ParsePasswdFilter(bytes.NewReader(raw), func(u accounts.User) bool { return u.Name == name })
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("the image has no user %s in /etc/passwd", name)
	}
	if err != nil {
		return accounts.User{}, err
	}
	return found[0], nil
}

func groupNumber(name string, read func(string) ([]byte, error)) (int, error) {
	raw, err := read("/etc/group")
	if err != nil {
		return 0, fmt.Errorf("read /etc/group of the image: %w", err)
	}
	found, err := accounts.ParseGroupFilter(bytes.NewReader(raw), func(g accounts.Group) bool { return g.Name == name })
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("the image has no group %s in /etc/group", name)
	}
	if err != nil {
		return 0, err
	}
	return found[0].Gid, nil
}
