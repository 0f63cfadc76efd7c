package daemon

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settleAfter is how long the daemon must not have worked when it counts as at rest.
	settleAfter = 15 * time.Second
	// historyAge is how long the store remembers what happened, for watchers that come back.
	historyAge = 5 * time.Minute
	// forgottenAfter is when that has become garbage, too: the store looks every half minute.
	forgottenAfter = historyAge + time.Minute
)

// Work is what makes the collector run so often; the probes of an idle cluster make it run every few seconds.
const (
	burst       = 3 // collections
	burstWithin = 3 * time.Second
)

// labour tells work from rest by when garbage was collected.
type labour struct{ recent [burst]time.Time }

// collected notes a collection and says whether it is one of a burst.
func (l *labour) collected(now time.Time) bool {
	copy(l.recent[:], l.recent[1:])
	l.recent[burst-1] = now
	return now.Sub(l.recent[0]) < burstWithin
}

// settle gives memory back when the daemon has started, and whenever it has come to rest after work, until ctx ends.
// By itself the runtime would keep the heap of the busiest moment for minutes, and the kernel the pages of the
// executable and of the database for as long as nobody else wants the memory.
func settle(ctx context.Context, dataDir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ours := func(file string) bool { return file == exe || strings.HasPrefix(file, dataDir+"/") }
	// Starting has touched nearly all of the executable, most of it for the last time, and its end is known: there is
	// nothing to wait for. The heap is left until there is rest: collecting it would give back one megabyte.
	if err := dropPages(ours); err != nil {
		return err
	}
	collections := make(chan struct{}, 1)
	hearCollections(ctx, collections)
	var work labour
	rest, oblivion := time.NewTimer(settleAfter), time.NewTimer(forgottenAfter)
	defer rest.Stop()
	defer oblivion.Stop()
	for {
		select { // each timer fires once after work, and not again before there has been more
		case <-ctx.Done():
			return nil
		case <-collections:
			if work.collected(time.Now()) {
				rest.Reset(settleAfter)
				oblivion.Reset(forgottenAfter)
			}
			continue
		case <-rest.C:
		case <-oblivion.C:
		}
		debug.FreeOSMemory()
		if err := dropPages(ours); err != nil {
			return err
		}
	}
}

// hearCollections tells, until ctx ends, of each garbage collection.
func hearCollections(ctx context.Context, heard chan<- struct{}) {
	// With a pointer inside, so that the runtime does not pack it together with objects that live longer.
	type sentinel struct{ _ *sentinel }
	runtime.AddCleanup(new(sentinel), func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		hearCollections(ctx, heard) // before telling: who is told may make the next collection at once
		select {
		case heard <- struct{}{}:
		default:
		}
	}, struct{}{})
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
