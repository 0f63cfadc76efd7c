package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// down takes everything away and looks whether it is gone.
func (d *demo) down(ctx context.Context) error {
	d.step("Take the guestbook and its daemon away")
	r, err := d.record()
	if os.IsNotExist(err) {
		d.saw("%s: no daemon ran here", d.runDir)
	} else if err != nil {
		return err
	} else {
		if err := d.show(ctx, "2", "down", "-v"); err != nil {
			return err
		}
		if err := d.show(ctx, "2", "down", "--all"); err != nil {
			return err
		}
	}
	for _, dir := range []string{d.runDir, d.dataDir} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		d.saw("removed %s", dir)
	}
	d.step("Look for what it may have left behind")
	left, err := d.leftovers(r.Instance)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	d.saw("nothing: no mount, network namespace, link, nft table, cgroup or process")
	return nil
}

// leftovers finds what carries the daemon's directories or its instance in its name.
func (d *demo) leftovers(instance string) (left []string, err error) {
	looks := []func() ([]string, error){d.mounts, d.processes}
	if instance != "" {
		looks = append(looks,
			func() ([]string, error) { return links("sw" + instance) },
			func() ([]string, error) { return tables("slipway-" + instance) },
			func() ([]string, error) { return cgroups("slipway-" + instance) })
	}
	for _, look := range looks {
		found, err := look()
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

func (d *demo) ours(text string) bool {
	return strings.Contains(text, d.dataDir+"/") || strings.Contains(text, d.runDir+"/") ||
		strings.HasSuffix(text, d.dataDir) || strings.HasSuffix(text, d.runDir)
}

// mounts are looked for in every process' namespace: one that is not ours could hold them, too.
func (d *demo) mounts() ([]string, error) {
	var left []string
	seen := map[string]bool{}
	err := eachProcess(func(dir string) {
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || seen[ns] {
			return
		}
		seen[ns] = true
		f, err := os.Open(filepath.Join(dir, "mountinfo"))
		if err != nil {
			return // it has ended
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) > 4 && d.ours(fields[4]) {
				left = append(left, fmt.Sprintf("mount %s, seen by process %s", fields[4], filepath.Base(dir)))
			}
		}
	})
	return left, err
}

// processes are the daemon, the warden and what they started; the latter hold the network namespaces.
func (d *demo) processes() ([]string, error) {
	var left []string
	err := eachProcess(func(dir string) {
		if filepath.Base(dir) == fmt.Sprint(os.Getpid()) || filepath.Base(dir) == fmt.Sprint(os.Getppid()) {
			return
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(line), "slipway") {
			return
		}
		text := strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")
		for _, arg := range strings.Fields(text) {
			if d.ours(arg) {
				left = append(left, fmt.Sprintf("process %s: %s", filepath.Base(dir), text))
				return
			}
		}
	})
	return left, err
}

func eachProcess(fn func(dir string)) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		fn(dir)
	}
	return err
}

func links(prefix string) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var left []string
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			left = append(left, fmt.Sprintf("%s %s", l.Type(), l.Attrs().Name))
		}
	}
	return left, nil
}

func tables(prefix string) ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nft tables: %w", err)
	}
	var left []string
	for _, t := range all {
		if strings.HasPrefix(t.Name, prefix) {
			left = append(left, "nft table "+t.Name)
		}
	}
	return left, nil
}

func cgroups(name string) ([]string, error) {
	var left []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil // cgroups come and go
		}
		if strings.HasPrefix(e.Name(), name) {
			left = append(left, "cgroup "+path)
			return fs.SkipDir
		}
		return nil
	})
	return left, err
}
