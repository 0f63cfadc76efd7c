package image

import (
	"io"
	"time"
)

// Progress is one line of what `docker pull` and its kin show: a status, of one layer
// where ID is set, with how far it has come where Total is.
type Progress struct {
	ID      string
	Status  string
	Current int64
	Total   int64
}

// ProgressFunc is told how an operation gets on; it may be called from several goroutines
// at once, and must return soon. Nil is fine.
type ProgressFunc func(Progress)

func (f ProgressFunc) say(p Progress) {
	if f != nil {
		f(p)
	}
}

// progressEvery bounds how often one layer reports.
const progressEvery = 100 * time.Millisecond

// reader reports what is read through it, as p with a growing Current.
func (f ProgressFunc) reader(r io.Reader, p Progress) io.Reader {
	if f == nil {
		return r
	}
	return &progressReader{r: r, p: p, say: f}
}

type progressReader struct {
	r    io.Reader
	p    Progress
	say  ProgressFunc
	last time.Time
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.p.Current += int64(n)
	if now := time.Now(); n > 0 && now.Sub(r.last) >= progressEvery {
		r.last = now
		r.say(r.p)
	}
	return n, err
}
