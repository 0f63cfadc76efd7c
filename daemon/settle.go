package daemon

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settleAfter is how long the daemon has not had to collect garbage when it counts as at rest.
const settleAfter = 15 * time.Second

// worthwhile is how much was allocated since memory was last given back, in bytes, when doing it again pays:
// an idle daemon allocates a little, too.
const worthwhile = 32 << 20

// settle gives memory back whenever the daemon has come to rest after work, of which starting is the first,
// until ctx ends. By itself the runtime would keep the heap of the busiest moment for minutes, and the kernel
// the pages of the executable and of the database for as long as nobody else wants the memory.
func settle(ctx context.Context, dataDir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	collected := make(chan struct{}, 1)
	hearCollections(ctx, collected)
	quiet := time.NewTimer(settleAfter)
	defer quiet.Stop()
	before := uint64(0) // allocated by the time memory was last given back
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			quiet.Reset(settleAfter)
		case <-quiet.C:
			if before > 0 && allocated()-before < worthwhile {
				continue
			}
			debug.FreeOSMemory()
			before = allocated()
			if err := dropPages(func(file string) bool { return file == exe || strings.HasPrefix(file, dataDir+"/") }); err != nil {
				return err
			}
		}
	}
}

// hearCollections tells, until ctx ends, of each garbage collection: the sign of work that needs no clock.
func hearCollections(ctx context.Context, heard chan<- struct{}) {
	// With a pointer inside, so that the runtime does not pack it together with objects that live longer.
	type sentinel struct{ _ *sentinel }
	runtime.AddCleanup(new(sentinel), func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		select {
		case heard <- struct{}{}:
		default:
		}
		hearCollections(ctx, heard)
	}, struct{}{})
}

// allocated is how many bytes of heap this process has ever asked for.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// dropPages drops what is mapped of the files that selects names and can be read again whenever it is touched.
func dropPages(selects func(file string) bool) error {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		if m, ok := parseMapping(lines.Text()); ok && !m.writable && selects(m.file) {
			m.release()
		}
	}
	return lines.Err()
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
