package image

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Files that stand beside a layer's directory, and live and die with it.
const (
	headersFile = "headers.zst" // the tar without its file contents
	rawFile     = "layer.tar"   // the tar itself, for the rare one that cannot be put together again
)

func beside(layerDir, name string) string { return filepath.Join(filepath.Dir(layerDir), name) }

// A header stream is what a tar has and a directory has not: headers, padding and the
// order of files, as tar-split finds them. The format is ours, because it has to be
// readable for as long as an image is kept: magic, then per entry
//
//	type byte (1 file, 2 raw bytes)
//	file: uvarint name length, name, uvarint size, 8 bytes CRC-64 when size > 0
//	raw:  uvarint length, bytes
//
// all of it compressed with zstd.
const headersMagic = "slipway layer headers 1\n"

// maxHeaderBytes bounds one name or run of raw bytes read back from a header stream;
// writing never makes one longer than tar-split's padding chunk or a PAX header of 1 MiB.
const maxHeaderBytes = 8 << 20

// headerWriter writes a header stream, and counts the bytes of the tar that it describes.
type headerWriter struct {
	f      *os.File
	z      *zstd.Encoder
	w      *bufio.Writer
	num    [binary.MaxVarintLen64]byte
	length int64 // of the tar
	pos    int
	limit  int
	files  int
}

func newHeaderWriter(path string, maxFiles int) (*headerWriter, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<18))
	if err != nil {
		closeQuietly(f)
		return nil, err
	}
	w := &headerWriter{f: f, z: z, w: bufio.NewWriterSize(z, 16<<10), limit: maxFiles}
	_, err = w.w.WriteString(headersMagic)
	return w, err
}

// AddEntry implements tar-split's storage.Packer.
func (w *headerWriter) AddEntry(e storage.Entry) (int, error) {
	w.pos++
	if err := w.w.WriteByte(byte(e.Type)); err != nil {
		return 0, err
	}
	if e.Type == storage.SegmentType {
		w.length += int64(len(e.Payload))
		return w.pos, w.bytes(e.Payload)
	}
	w.files++
	if w.files > w.limit {
		return 0, fmt.Errorf("more than %d files in one layer: %w", w.limit, errdefs.ErrResourceExhausted)
	}
	w.length += e.Size
	err := errors.Join(w.bytes(e.GetNameBytes()), w.uvarint(uint64(e.Size)))
	if err == nil && e.Size > 0 {
		_, err = w.w.Write(e.Payload)
	}
	return w.pos, err
}

func (w *headerWriter) uvarint(n uint64) error {
	_, err := w.w.Write(w.num[:binary.PutUvarint(w.num[:], n)])
	return err
}

func (w *headerWriter) bytes(p []byte) error {
	if err := w.uvarint(uint64(len(p))); err != nil {
		return err
	}
	_, err := w.w.Write(p)
	return err
}

func (w *headerWriter) Close() error {
	return errors.Join(w.w.Flush(), w.z.Close(), w.f.Close())
}

// headerReader reads a header stream back; it implements tar-split's storage.Unpacker.
type headerReader struct {
	f   *os.File
	z   *zstd.Decoder
	r   *bufio.Reader
	buf []byte
}

func openHeaders(path string) (*headerReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		closeQuietly(f)
		return nil, err
	}
	r := &headerReader{f: f, z: z, r: bufio.NewReaderSize(z, 16<<10)}
	magic := make([]byte, len(headersMagic))
	if _, err := io.ReadFull(r.r, magic); err != nil || string(magic) != headersMagic {
		r.Close()
		return nil, fmt.Errorf("%s is not a header stream of ours (%q): %w", path, magic, errdefs.ErrDataLoss)
	}
	return r, nil
}

func (r *headerReader) Close() {
	r.z.Close()
	closeQuietly(r.f)
}

// Next returns the next entry; its bytes are good until the following call.
func (r *headerReader) Next() (*storage.Entry, error) {
	t, err := r.r.ReadByte()
	if err != nil {
		return nil, err // io.EOF here is the end
	}
	e := &storage.Entry{Type: storage.Type(t)}
	p, err := r.bytes()
	if err != nil {
		return nil, noEOF(err)
	}
	switch e.Type {
	case storage.SegmentType:
		e.Payload = p
		return e, nil
	case storage.FileType:
		e.SetName(string(p))
		return e, noEOF(r.file(e))
	}
	return nil, fmt.Errorf("entry of unknown type %d: %w", t, errdefs.ErrDataLoss)
}

func (r *headerReader) file(e *storage.Entry) error {
	size, err := binary.ReadUvarint(r.r)
	if err != nil || size == 0 {
		return err
	}
	e.Size = int64(size)
	e.Payload = make([]byte, 8)
	_, err = io.ReadFull(r.r, e.Payload)
	return err
}

func (r *headerReader) bytes() ([]byte, error) {
	n, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, err
	}
	if n > maxHeaderBytes {
		return nil, fmt.Errorf("entry of %d bytes: %w", n, errdefs.ErrDataLoss)
	}
	if uint64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	_, err = io.ReadFull(r.r, r.buf[:n])
	return r.buf[:n], err
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// layerFiles opens files of one layer by the names that its tar gave them. Names are
// resolved inside the directory, symbolic links included, as they were when the tar was
// extracted: the tar may be hostile still.
type layerFiles struct{ root *os.File }

func openLayerFiles(dir string) (layerFiles, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return layerFiles{f}, err
}

// Get implements tar-split's storage.FileGetter.
func (l layerFiles) Get(name string) (io.ReadCloser, error) { return l.open(name, unix.O_RDONLY) }

func (l layerFiles) open(name string, flags uint64) (*os.File, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	// Cleaned as the extraction cleaned it: "a/../b" is b even where a is missing.
	fd, err := unix.Openat2(int(l.root.Fd()), filepath.Clean("/"+name), how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (l layerFiles) Close() { closeQuietly(l.root) }

// reproducible reports whether the layer in dir, whose headers are in the file at path
// and whose tar had length bytes, can be put together again: every file content that the
// tar had must be where its name says, once. A tar that has a name twice, or removes
// what it brought, or holds sparse files, is not.
func reproducible(dir, path string, length, described int64) (bool, error) {
	if length != described {
		return false, nil
	}
	h, err := openHeaders(path)
	if err != nil {
		return false, err
	}
	defer h.Close()
	files, err := openLayerFiles(dir)
	if err != nil {
		return false, err
	}
	defer files.Close()
	return everyFileOnce(h, files)
}

func everyFileOnce(h *headerReader, files layerFiles) (bool, error) {
	seen := map[uint64]struct{}{}
	for {
		e, err := h.Next()
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if e.Type != storage.FileType || e.Size == 0 {
			continue
		}
		ino, ok := files.inode(e.GetName(), e.Size)
		if _, twice := seen[ino]; !ok || twice {
			return false, nil
		}
		seen[ino] = struct{}{}
	}
}

// inode identifies the regular file of this size at name.
func (l layerFiles) inode(name string, size int64) (uint64, bool) {
	f, err := l.open(name, unix.O_PATH)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, false
	}
	return st.Ino, st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == size
}

// OpenLayer returns the uncompressed tar of a layer and its length. The bytes are checked
// while they are read: a reader that comes to io.EOF has seen exactly diffID.
func (s *Store) OpenLayer(_ context.Context, diffID digest.Digest) (io.ReadCloser, int64, error) {
	l, ok := s.layers.anyWith(diffID)
	if !ok {
		return nil, 0, fmt.Errorf("layer %s is not unpacked here: %w", diffID, errdefs.ErrNotFound)
	}
	r, err := assemble(l)
	if err != nil {
		return nil, 0, fmt.Errorf("open layer %s: %w", diffID, err)
	}
	return &verifiedReader{ReadCloser: r, left: l.Size, want: diffID, digester: diffID.Algorithm().Digester()}, l.Size, nil
}

func assemble(l Layer) (io.ReadCloser, error) {
	if f, err := os.Open(beside(l.Dir, rawFile)); err == nil {
		return f, nil
	}
	h, err := openHeaders(beside(l.Dir, headersFile))
	if err != nil {
		return nil, err
	}
	files, err := openLayerFiles(l.Dir)
	if err != nil {
		h.Close()
		return nil, err
	}
	return newAssembly(h, files), nil
}

// assembly is a tar being put together by a goroutine that ends when it is closed.
type assembly struct {
	*io.PipeReader
	done chan struct{}
}

func newAssembly(h *headerReader, files layerFiles) *assembly {
	pr, pw := io.Pipe()
	a := &assembly{pr, make(chan struct{})}
	go func() {
		defer close(a.done)
		defer h.Close()
		defer files.Close()
		w := bufio.NewWriterSize(pw, 64<<10)
		err := asm.WriteOutputTarStream(files, h, w)
		if err == nil {
			err = w.Flush()
		}
		pw.CloseWithError(err)
	}()
	return a
}

func (a *assembly) Close() error {
	err := a.PipeReader.Close()
	<-a.done
	return err
}

// verifiedReader turns a wrong digest or length into an error in place of io.EOF.
type verifiedReader struct {
	io.ReadCloser
	left     int64
	want     digest.Digest
	digester digest.Digester
}

func (v *verifiedReader) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.left -= int64(n)
	_, _ = v.digester.Hash().Write(p[:n])
	if err == io.EOF {
		if got := v.digester.Digest(); v.left != 0 || got != v.want {
			err = fmt.Errorf("content of %s changed on disk: it is now %s: %w", v.want, got, errdefs.ErrDataLoss)
		}
	}
	return n, err
}
