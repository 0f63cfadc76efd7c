package buildcontext

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var magics = []struct {
	prefix []byte
	open   func(context.Context, io.Reader) (io.ReadCloser, error)
}{
	{[]byte{0x1f, 0x8b, 0x08}, func(_ context.Context, r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{[]byte("BZh"), func(_ context.Context, r io.Reader) (io.ReadCloser, error) {
		return io.NopCloser(bzip2.NewReader(r)), nil
	}},
	{[]byte{0x28, 0xb5, 0x2f, 0xfd}, openZstd},
	{[]byte{0xfd, '7', 'z', 'X', 'Z', 0}, openXz},
}

// Decompress recognises gzip, bzip2, zstd and xz by content; anything else is passed on.
func Decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, m.prefix) {
			return m.open(ctx, br)
		}
	}
	return io.NopCloser(br), nil
}

func openZstd(_ context.Context, r io.Reader) (io.ReadCloser, error) {
	// The window is what an archive can make the daemon allocate.
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

// openXz runs the xz program: no Go package for it is as well tried, and Docker does the
// same.
func openXz(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	bin, err := exec.LookPath("xz")
	if err != nil {
		return nil, errors.New("xz-compressed, and the xz program is not installed here: install xz-utils, or use gzip or zstd")
	}
	cmd := exec.CommandContext(ctx, bin, "-d", "-c", "-q")
	cmd.Stdin = r
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start xz: %w", err)
	}
	return &xzReader{ReadCloser: out, cmd: cmd, complaint: &complaint}, nil
}

type xzReader struct {
	io.ReadCloser
	cmd       *exec.Cmd
	complaint *bytes.Buffer
	waited    bool
}

func (x *xzReader) Read(p []byte) (int, error) {
	n, err := x.ReadCloser.Read(p)
	if err == io.EOF && !x.waited {
		x.waited = true
		if werr := x.cmd.Wait(); werr != nil {
			return n, fmt.Errorf("xz: %s", strings.TrimSpace(x.complaint.String()))
		}
	}
	return n, err
}

func (x *xzReader) Close() error {
	err := x.ReadCloser.Close()
	if !x.waited {
		x.waited = true
		_ = x.cmd.Process.Kill()
		_ = x.cmd.Wait() // killed on purpose: its status says nothing
	}
	return err
}
