package op

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// maxDownload bounds one ADD of an URL.
const maxDownload = 8 << 30

// Download is a file from the web, as ADD of an URL asks for.
type Download struct {
	o        Options
	url      string
	filename string
	checksum digest.Digest
	perm     os.FileMode
	uid, gid int
	name     string

	file     string // where it was stored; empty before
	sum      digest.Digest
	modified *time.Time
}

func newDownload(o Options, s *pb.SourceOp, name string) (*Download, error) {
	d := &Download{o: o, url: s.Identifier, filename: s.Attrs[pb.AttrHTTPFilename], perm: 0o600, name: name}
	if c := s.Attrs[pb.AttrHTTPChecksum]; c != "" {
		sum, err := digest.Parse(c)
		if err != nil {
			return nil, fmt.Errorf("checksum %q: %w", c, err)
		}
		d.checksum = sum
	}
	for attr, set := range map[string]func(int){
		pb.AttrHTTPUID: func(n int) { d.uid = n },
		pb.AttrHTTPGID: func(n int) { d.gid = n },
	} {
		if v := s.Attrs[attr]; v != "" {
			n, err := strconv.Atoi(v)
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", attr, d.url, err)
			}
			set(n)
		}
	}
	if v := s.Attrs[pb.AttrHTTPPerm]; v != "" {
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			return nil, fmt.Errorf("mode of %s: %w", d.url, err)
		}
		d.perm = os.FileMode(n) & 0o777
	}
	return d, nil
}

// CacheMap implements solver.Op. The key is the content: an URL may give something else
// tomorrow.
func (d *Download) CacheMap(ctx context.Context, job solver.JobContext, _ int) (*solver.CacheMap, bool, error) {
	if err := d.fetch(ctx, job); err != nil {
		return nil, false, fmt.Errorf("download %s: %w", d.url, err)
	}
	modified := ""
	if d.modified != nil {
		modified = d.modified.UTC().Format(http.TimeFormat)
	}
	data, err := json.Marshal(struct {
		Filename       string
		Perm, UID, GID int
		Checksum       digest.Digest
		LastModTime    string `json:",omitempty"`
	}{d.filename, int(d.perm), d.uid, d.gid, d.sum, modified})
	if err != nil {
		return nil, false, err
	}
	return newCacheMap(sourceDigest(digest.FromBytes(data).String()), 0), true, nil
}

func (d *Download) fetch(ctx context.Context, job solver.JobContext) error {
	if d.file != "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return err
	}
	resp, err := d.o.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("server answered %s", resp.Status)
	}
	if d.filename == "" {
		d.filename = nameOf(d.url, resp)
	}
	if at, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		d.modified = &at
	}
	if err := d.store(resp.Body); err != nil {
		return err
	}
	if d.checksum != "" && d.checksum != d.sum {
		_ = os.Remove(d.file) // the directory is emptied at the next start
		d.file = ""
		return fmt.Errorf("digest is %s, the Dockerfile expects %s", d.sum, d.checksum)
	}
	return job.Cleanup(func() error { return os.Remove(d.file) })
}

func (d *Download) store(body io.Reader) error {
	f, err := os.CreateTemp(d.o.TmpDir, "download-")
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, maxDownload+1))
	if err == nil && n > maxDownload {
		err = fmt.Errorf("larger than %d bytes", int64(maxDownload))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	d.file, d.sum = f.Name(), digest.NewDigest(digest.SHA256, h)
	return nil
}

// nameOf is the name that ADD gives a file: the server's, or the end of the URL.
func nameOf(raw string, resp *http.Response) string {
	if _, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
		if n := path.Base(path.Clean("/" + params["filename"])); n != "/" && n != "." {
			return n
		}
	}
	if u, err := url.Parse(raw); err == nil {
		if n := path.Base(path.Clean("/" + u.Path)); n != "/" && n != "." {
			return n
		}
	}
	return "download"
}

// Exec implements solver.Op.
func (d *Download) Exec(ctx context.Context, job solver.JobContext, _ []solver.Result) ([]solver.Result, error) {
	if err := d.fetch(ctx, job); err != nil {
		return nil, fmt.Errorf("download %s: %w", d.url, err)
	}
	draft, err := d.o.Store.NewDraft(ctx, nil)
	if err != nil {
		return nil, err
	}
	if err := d.place(filepath.Join(draft.Upper(), path.Base(path.Clean("/"+d.filename)))); err != nil {
		draft.Discard()
		return nil, fmt.Errorf("store %s: %w", d.url, err)
	}
	snap, err := draft.Commit(ctx, d.name, d.o.Now())
	if err != nil {
		return nil, err
	}
	return []solver.Result{d.o.Store.NewResult(snap, d.name)}, nil
}

func (d *Download) place(p string) error {
	in, err := os.Open(d.file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, d.perm)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Chmod(d.perm); err != nil {
		return err
	}
	if err := out.Chown(d.uid, d.gid); err != nil {
		return err
	}
	at := time.Unix(0, 0)
	if d.modified != nil {
		at = *d.modified
	}
	return os.Chtimes(p, at, at)
}

// Acquire implements solver.Op.
func (d *Download) Acquire(ctx context.Context) (solver.ReleaseFunc, error) {
	return acquire(ctx, d.o.Slots)
}
