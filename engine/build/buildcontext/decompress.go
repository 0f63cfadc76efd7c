package buildcontext

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

var magics = []struct {
	prefix []byte
	open   func(io.Reader) (io.ReadCloser, error)
}{
	{[]byte{0x1f, 0x8b, 0x08}, func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{[]byte("BZh"), func(r io.Reader) (io.ReadCloser, error) {
		return io.NopCloser(bzip2.NewReader(r)), nil
	}},
	{[]byte{0x28, 0xb5, 0x2f, 0xfd}, openZstd},
	{[]byte{0xfd, '7', 'z', 'X', 'Z', 0}, openXz},
}

// Decompress recognises gzip, bzip2, zstd and xz by content; anything else is passed on.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, m.prefix) {
			return m.open(br)
		}
	}
	return io.NopCloser(br), nil
}

// maxWindow is what an archive can make the daemon allocate; `xz -9` and `zstd -19` need half of it or less.
const maxWindow = 128 << 20

// ErrWindow says that an archive cannot be read in so much memory.
var ErrWindow = errors.New("compressed with a window of more than 128 MiB: compress it again with `xz -9` or `zstd -19`")

func openZstd(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return windowed{d.IOReadCloser()}, nil
}

// openXz reads xz in this process, so that a machine without the xz program builds the same image.
func openXz(r io.Reader) (io.ReadCloser, error) {
	d, err := xz.NewReader(r, maxWindow)
	if err != nil {
		return nil, window(err)
	}
	return windowed{io.NopCloser(d)}, nil
}

// windowed says in our words that a window is too large.
type windowed struct{ io.ReadCloser }

func (w windowed) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	return n, window(err)
}

func window(err error) error {
	if errors.Is(err, xz.ErrMemlimit) || errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return ErrWindow
	}
	return err
}
