package registry

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/image"
)

func (g *registry) blobs(w http.ResponseWriter, r *http.Request, repo, arg string) error {
	d := digest.Digest(arg)
	if err := d.Validate(); err != nil {
		return errorOf(codeDigestInvalid, "digest "+quote(arg)+": "+err.Error())
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		b, err := g.repos.Blob(r.Context(), repo, d)
		if err != nil {
			return missing(codeBlobUnknown, err)
		}
		return g.serveBlob(w, r, b)
	case http.MethodDelete:
		if err := g.repos.DeleteBlob(r.Context(), repo, d); err != nil {
			return missing(codeBlobUnknown, err)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return allow(r)
}

// serveBlob is not http.ServeContent, because that seeks: a layer that is made again while
// it is sent cannot be sought in.
func (g *registry) serveBlob(w http.ResponseWriter, r *http.Request, b image.Blob) error {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", b.Digest.String())
	h.Set("Accept-Ranges", "bytes")
	h.Set("Etag", quote(b.Digest.String()))
	start, length, status, err := byteRange(r.Header.Get("Range"), b.Size)
	if err != nil {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", b.Size))
		return err
	}
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+length-1, b.Size))
	}
	h.Set("Content-Length", strconv.FormatInt(length, 10))
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	in, err := b.Open(r.Context(), start)
	if err != nil {
		h.Del("Content-Length")
		return missing(codeBlobUnknown, err)
	}
	defer in.Close()
	w.WriteHeader(status)
	if n, err := io.Copy(w, io.LimitReader(in, length)); err != nil || n != length {
		// The length is out already: cutting the connection is the only way to say that
		// the content is not what it should be.
		g.log.Warn("blob was not sent to its end", "digest", b.Digest, "sent", n, "of", length, "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// byteRange reads a Range header with one range; anything it does not understand is the
// whole blob, as HTTP has it.
func byteRange(header string, size int64) (start, length int64, status int, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	from, to, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, http.StatusOK, nil
	}
	if from == "" { // the last n bytes
		n, err := strconv.ParseInt(to, 10, 64)
		if err != nil || n <= 0 {
			return 0, 0, 0, unsatisfiable(header)
		}
		n = min(n, size)
		return size - n, n, http.StatusPartialContent, nil
	}
	start, err = strconv.ParseInt(from, 10, 64)
	if err != nil || start < 0 || start >= size {
		return 0, 0, 0, unsatisfiable(header)
	}
	end := size - 1
	if to != "" {
		if end, err = strconv.ParseInt(to, 10, 64); err != nil || end < start {
			return 0, 0, 0, unsatisfiable(header)
		}
	}
	return start, min(end, size-1) - start + 1, http.StatusPartialContent, nil
}

func unsatisfiable(header string) error {
	return errorOf(code{"SIZE_INVALID", http.StatusRequestedRangeNotSatisfiable}, "range "+quote(header)+" is not in the blob")
}

func (g *registry) uploads(w http.ResponseWriter, r *http.Request, repo, id string) error {
	if id == "" {
		if err := allow(r, http.MethodPost); err != nil {
			return err
		}
		return g.startUpload(w, r, repo)
	}
	u, err := g.repos.Upload(repo, id)
	if err != nil {
		return missing(codeUploadUnknown, err)
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		uploadHeaders(w, repo, u, u.Offset())
		w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch:
		return g.patch(w, r, repo, u)
	case http.MethodPut:
		return g.finish(w, r, repo, u)
	case http.MethodDelete:
		u.Cancel(r.Context())
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return allow(r)
}

func (g *registry) startUpload(w http.ResponseWriter, r *http.Request, repo string) error {
	q := r.URL.Query()
	if alg := q.Get("digest-algorithm"); alg != "" && alg != "sha256" && alg != "sha512" {
		return errorOf(codeDigestInvalid, "digest algorithm "+quote(alg)+" is not supported: use sha256 or sha512")
	}
	if mount := digest.Digest(q.Get("mount")); mount != "" && mount.Validate() == nil {
		err := g.repos.Mount(r.Context(), repo, q.Get("from"), mount)
		if err == nil {
			created(w, repo, mount)
			return nil
		}
		if !errdefs.IsNotFound(err) {
			return err
		}
	}
	u, err := g.repos.NewUpload(r.Context(), repo)
	if err != nil {
		return err
	}
	if q.Has("digest") {
		err := g.finish(w, r, repo, u)
		if err != nil {
			u.Cancel(r.Context()) // nobody was told its name, to go on with it
		}
		return err
	}
	uploadHeaders(w, repo, u, 0)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func uploadHeaders(w http.ResponseWriter, repo string, u *image.Upload, offset int64) {
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/blobs/uploads/"+u.ID)
	h.Set("Docker-Upload-UUID", u.ID)
	h.Set("Range", fmt.Sprintf("0-%d", max(0, offset-1)))
}

// created is the answer for a blob that is in the repository now.
func created(w http.ResponseWriter, repo string, d digest.Digest) {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

func (g *registry) patch(w http.ResponseWriter, r *http.Request, repo string, u *image.Upload) error {
	start, length, err := contentRange(r)
	if err != nil {
		return err
	}
	before := u.Offset()
	offset, err := u.Append(r.Context(), r.Body, start)
	uploadHeaders(w, repo, u, offset)
	if err != nil {
		return uploadError(err)
	}
	if length >= 0 && offset-before != length {
		return errorOf(codeUploadInvalid, fmt.Sprintf("chunk has %d bytes, its Content-Range says %d", offset-before, length))
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func uploadError(err error) error {
	return missing(codeUploadUnknown, as(codeUploadOutOfOrder, errdefs.IsOutOfRange, err))
}

// contentRange reads where a chunk belongs, "0-99" as the specification has it or "bytes
// 0-99/*" as HTTP has it; -1 is not said.
func contentRange(r *http.Request) (start, length int64, err error) {
	header := r.Header.Get("Content-Range")
	if header == "" {
		return -1, -1, nil
	}
	spec, _, _ := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	from, to, _ := strings.Cut(spec, "-")
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	if err1 != nil || err2 != nil || start < 0 || end < start {
		return 0, 0, errorOf(codeUploadInvalid, "Content-Range "+quote(header)+" is not a range")
	}
	return start, end - start + 1, nil
}

// finish adds the request's body, if there is one, and ends the upload with its digest.
func (g *registry) finish(w http.ResponseWriter, r *http.Request, repo string, u *image.Upload) error {
	d := digest.Digest(r.URL.Query().Get("digest"))
	if err := d.Validate(); err != nil {
		u.Cancel(r.Context())
		return errorOf(codeDigestInvalid, "digest "+quote(d.String())+": "+err.Error())
	}
	start, _, err := contentRange(r)
	if err != nil {
		return err
	}
	if _, err := u.Append(r.Context(), r.Body, start); err != nil {
		return uploadError(err)
	}
	if err := u.Commit(r.Context(), d); err != nil {
		return missing(codeUploadUnknown, err)
	}
	created(w, repo, d)
	return nil
}
