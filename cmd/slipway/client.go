package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/common"

	"slipway.dev/slipway/daemon/rundir"
)

// apiPath is the version that this command was written against; the daemon beside it serves it.
const apiPath = "/v1.51"

// client speaks the Docker Engine API to the daemon of one run directory.
type client struct {
	socket string
	http   http.Client
	start  func(context.Context) error // brings the daemon up when nobody answers; nil: do not
}

func newClient(runDir string, start func(context.Context) error) *client {
	c := &client{socket: rundir.Socket(runDir), start: start}
	c.http.Transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
	}
	return c
}

// dial connects, starting the daemon once if nobody listens.
func (c *client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err == nil && rundir.Killed(filepath.Dir(c.socket)) {
		conn.Close()
		err = syscall.ECONNREFUSED
	}
	if err == nil && c.start != nil {
		return c.watch(ctx, conn.(*net.UnixConn)), nil
	}
	if err == nil || c.start == nil || !nobodyListens(err) {
		return conn, c.explain(err)
	}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	conn, err = d.DialContext(ctx, "unix", c.socket)
	return conn, c.explain(err)
}

// watched is a connection that may have come while the daemon was dying: the warden's socket keeps it waiting then.
type watched struct {
	*net.UnixConn
	answered func() // ends the watch
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.UnixConn.Read(p)
	w.answered()
	return n, err
}

// watch starts the next daemon if this one turns out to have been killed before it answers; the next one takes the waiting
// connection.
func (c *client) watch(ctx context.Context, conn *net.UnixConn) net.Conn {
	ctx, answered := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !rundir.Killed(filepath.Dir(c.socket)) {
				continue
			}
			if c.start(ctx) != nil {
				conn.Close()
			}
			return
		}
	}()
	return watched{conn, answered}
}

func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func (c *client) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to the daemon at %s: permission denied: its socket is for root only, try sudo", c.socket)
	case nobodyListens(err):
		return fmt.Errorf("no daemon at %s: start one with `slipway serve`", c.socket)
	}
	return fmt.Errorf("connect to the daemon: %w", err)
}

// apiError is an error that the daemon answered.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

func isStatus(err error, status int) bool {
	var e *apiError
	return errors.As(err, &e) && e.status == status
}

// call is one request.
type call struct {
	method, path string
	query        url.Values
	body         any       // sent as JSON; nil: none
	stream       io.Reader // sent as it is, instead of body
	media        string    // of stream
	header       http.Header
}

func (c *client) request(ctx context.Context, k call) (*http.Request, error) {
	body := k.stream
	media := k.media
	if k.body != nil {
		raw, err := json.Marshal(k.body)
		if err != nil {
			return nil, err
		}
		body, media = bytes.NewReader(raw), "application/json"
	}
	target := url.URL{Scheme: "http", Host: "slipway", Path: apiPath + k.path, RawQuery: k.query.Encode()}
	req, err := http.NewRequestWithContext(ctx, k.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	return req, nil
}

// do makes a request and returns the answer if it is a success. The caller closes its body.
func (c *client) do(ctx context.Context, k call) (*http.Response, error) {
	req, err := c.request(ctx, k)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // "Get http://slipway/…" tells nobody anything
		}
		return nil, err
	}
	if err := checkStatus(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func checkStatus(resp *http.Response) error {
	if resp.StatusCode < 400 {
		return nil
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var e common.ErrorResponse
	if json.Unmarshal(raw, &e) != nil || e.Message == "" {
		e.Message = fmt.Sprintf("the daemon answered %s: %s", resp.Status, strings.TrimSpace(string(raw)))
	}
	return &apiError{resp.StatusCode, e.Message}
}

// get decodes a JSON answer into v.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) error {
	return c.exchange(ctx, call{method: "GET", path: path, query: query}, v)
}

// exchange makes a request and decodes the answer into v, if v is not nil.
func (c *client) exchange(ctx context.Context, k call, v any) error {
	resp, err := c.do(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if v == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the daemon's answer to %s %s: %w", k.method, k.path, err)
	}
	return nil
}

func (c *client) post(ctx context.Context, path string, query url.Values, body, v any) error {
	return c.exchange(ctx, call{method: "POST", path: path, query: query, body: body}, v)
}

func (c *client) delete(ctx context.Context, path string, query url.Values, v any) error {
	return c.exchange(ctx, call{method: "DELETE", path: path, query: query}, v)
}

// duplex is a connection taken over by a stream in both directions.
type duplex struct {
	net.Conn
	r      *bufio.Reader
	framed bool // output comes in frames that tell standard output from standard error
}

func (d *duplex) Read(p []byte) (int, error) { return d.r.Read(p) }

// closeInput tells the other side that nothing more will be written.
func (d *duplex) closeInput() {
	if c, ok := d.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// hijack makes a request that turns its connection into a stream.
func (c *client) hijack(ctx context.Context, k call) (*duplex, error) {
	req, err := c.request(ctx, k)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask for a stream: %w", err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("ask for a stream: %w", err)
	}
	if err := checkStatus(resp); err != nil {
		conn.Close()
		return nil, err
	}
	return &duplex{Conn: conn, r: r, framed: strings.Contains(resp.Header.Get("Content-Type"), "multiplexed")}, nil
}
