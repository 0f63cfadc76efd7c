package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// maxWindow bounds the memory that a hostile zstd frame or xz block can ask for.
const maxWindow = 128 << 20

var magics = []struct {
	name  string
	bytes []byte
}{
	{"gzip", []byte{0x1f, 0x8b, 0x08}},
	{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{"bzip2", []byte("BZh")},
	{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// compression names how a stream is compressed, going by its first bytes; "" is not at all.
func compression(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			return m.name
		}
	}
	return ""
}

// looksLikeTar reports whether head, the first 512 bytes of a stream, start a tar. An empty
// tar is nothing but zeros.
func looksLikeTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head[:512])).Next()
	return err == nil || !errors.Is(err, tar.ErrHeader)
}

// Decompress returns the tar in r, however it is compressed.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compression(head) {
	case "":
		return io.NopCloser(b), nil
	case "gzip":
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, damaged(err)
		}
		return damagedReader{z}, nil
	case "zstd":
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, damaged(err)
		}
		return damagedReader{z.IOReadCloser()}, nil
	case "bzip2":
		return damagedReader{io.NopCloser(bzip2.NewReader(b))}, nil
	default: // xz
		z, err := xz.NewReader(b, maxWindow)
		if err != nil {
			return nil, damaged(err)
		}
		return damagedReader{io.NopCloser(z)}, nil
	}
}

// damagedReader marks errors of a decompressor as the input's fault.
type damagedReader struct{ io.ReadCloser }

func (d damagedReader) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = damaged(err)
	}
	return n, err
}

func damaged(err error) error {
	return fmt.Errorf("damaged compressed data: %w: %w", err, errdefs.ErrInvalidArgument)
}
