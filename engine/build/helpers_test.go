package build_test

import (
	"fmt"
	"os"
	"syscall"
)

func owner(st os.FileInfo) (uid, gid int) {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(s.Uid), int(s.Gid)
}

func uid0(uid, gid int) string { return fmt.Sprintf("%d:%d", uid, gid) }
