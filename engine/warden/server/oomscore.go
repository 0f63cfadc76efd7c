package server

import (
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The kernel's range, and what the warden takes for itself: the last before "never".
const (
	oomScoreMin    = -1000
	oomScoreMax    = 1000
	oomScoreWarden = -999
)

// guardSelf makes the warden the last victim of a lack of memory, as far as it may, and returns the lowest score that it may
// give to anybody. Without CAP_SYS_RESOURCE that is what its own parents had, which only trying tells.
func guardSelf(path string) (floor int, err error) {
	write := func(score int) error { return os.WriteFile(path, []byte(strconv.Itoa(score)), 0) }
	floor = lowestAllowed(func(score int) bool { return write(score) == nil })
	return floor, write(max(floor, oomScoreWarden))
}

// lowestAllowed finds the lowest score that is allowed; all higher ones are, too.
func lowestAllowed(allowed func(int) bool) int {
	low, high := oomScoreMin, oomScoreMax
	for low < high {
		middle := low + (high-low)/2
		if allowed(middle) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}

// raiseOOMScore replaces a score below the floor, or the start would fail. Absent means 0: else the container would inherit the
// warden's.
func (s *Server) raiseOOMScore(p *specs.Process) {
	score := 0
	if p.OOMScoreAdj != nil {
		score = *p.OOMScoreAdj
	}
	if floor := s.opts.OOMFloor; score < floor {
		s.oomSaid.Do(func() {
			s.log.Warn("containers get a higher OOM score than they ask for: the warden lacks CAP_SYS_RESOURCE", "asked", score, "got", floor)
		})
		score = floor
	}
	p.OOMScoreAdj = &score
}
