package daemon

import (
	"bufio"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is how long after its start the daemon counts what starting took as no longer needed.
const settleAfter = 15 * time.Second

// settle gives back, once, the memory that only starting needed: free heap, and the pages of the
// executable and of the database that are mapped but can be read again whenever they are touched.
func settle(ctx context.Context, dataDir string) error {
	timer := time.NewTimer(settleAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	debug.FreeOSMemory()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if m, ok := parseMapping(lines.Text()); ok && !m.writable && (m.file == exe || strings.HasPrefix(m.file, dataDir+"/")) {
			m.release()
		}
	}
	return nil
}

// mapping is one line of /proc/self/maps that has a file (proc_pid_maps(5)).
type mapping struct {
	start, end uintptr
	writable   bool
	file       string
}

func parseMapping(line string) (mapping, bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") {
		return mapping{}, false
	}
	from, to, ok := strings.Cut(fields[0], "-")
	start, err := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if !ok || err != nil || err2 != nil || len(fields[1]) < 2 {
		return mapping{}, false
	}
	return mapping{uintptr(start), uintptr(end), fields[1][1] == 'w', strings.Join(fields[5:], " ")}, true
}

// release drops the pages from this process. They are clean and backed by a file: the next access finds
// them in the page cache, or on the disk.
func (m mapping) release() {
	unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
}
