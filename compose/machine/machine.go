// Package machine is this machine's engine as Compose needs it: building, pulling and looking at
// images, and finding volumes, through the Docker Engine API on the daemon's socket.
package machine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/distribution/reference"
)

// Client speaks to one daemon.
type Client struct{ http *http.Client }

// Dial prepares a client for the daemon whose socket is given; it connects when it is first used.
func Dial(socket string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// NotFoundError says that the engine does not have something.
type NotFoundError struct{ Message string }

func (e *NotFoundError) Error() string { return e.Message }

// IsNotFound tells whether err says that something is absent.
func IsNotFound(err error) bool {
	var n *NotFoundError
	return errors.As(err, &n)
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader, header http.Header) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "docker", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("engine: %w: is the daemon running? start it with `slipway serve --detach`", err)
	}
	if res.StatusCode < 400 {
		return res, nil
	}
	defer res.Body.Close()
	var e struct{ Message string }
	raw, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if json.Unmarshal(raw, &e) != nil || e.Message == "" {
		e.Message = strings.TrimSpace(string(raw))
	}
	if res.StatusCode == http.StatusNotFound {
		return nil, &NotFoundError{e.Message}
	}
	return nil, errors.New(e.Message)
}

func (c *Client) get(ctx context.Context, path string, out any) error {
	res, err := c.do(ctx, http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(out)
}

// Image is what the engine says of an image.
type Image struct {
	ID     string `json:"Id"`
	Config struct {
		User         string
		ExposedPorts map[string]struct{}
		Volumes      map[string]struct{}
		Entrypoint   []string
		Cmd          []string
		Healthcheck  *struct {
			Test                           []string
			Interval, Timeout, StartPeriod int64 // nanoseconds
			Retries                        int
		}
	}
	RepoDigests []string
}

// Inspect looks at an image.
func (c *Client) Inspect(ctx context.Context, ref string) (Image, error) {
	var img Image
	err := c.get(ctx, "/images/"+ref+"/json", &img)
	return img, err
}

// VolumePath is the host directory of a named volume.
func (c *Client) VolumePath(ctx context.Context, name string) (string, error) {
	var v struct{ Mountpoint string }
	err := c.get(ctx, "/volumes/"+url.PathEscape(name), &v)
	return v.Mountpoint, err
}

// Login is a registry account.
type Login struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
}

// tagged is ref with the tag that is meant when none is given; the engine would take it for all tags.
func tagged(ref string) string {
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	if strings.ContainsAny(last, ":@") {
		return ref
	}
	return ref + ":latest"
}

// Pull fetches an image; report hears of each line of progress. An empty platform is this machine's.
func (c *Client) Pull(ctx context.Context, ref string, login *Login, platform string, report func(string)) error {
	q := url.Values{"fromImage": {tagged(ref)}}
	if platform != "" {
		q.Set("platform", platform)
	}
	return c.transfer(ctx, "/images/create", q, login, report)
}

// Push sends an image to the registry that its name tells.
func (c *Client) Push(ctx context.Context, ref string, login *Login, report func(string)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	q := url.Values{}
	if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
		q.Set("tag", tagged.Tag())
	}
	return c.transfer(ctx, "/images/"+reference.FamiliarName(named)+"/push", q, login, report)
}

func (c *Client) transfer(ctx context.Context, path string, q url.Values, login *Login, report func(string)) error {
	raw := []byte("{}") // a push must carry the header
	if login != nil {
		var err error
		if raw, err = json.Marshal(login); err != nil {
			return err
		}
	}
	header := http.Header{"X-Registry-Auth": {base64.URLEncoding.EncodeToString(raw)}}
	res, err := c.do(ctx, http.MethodPost, path, q, nil, header)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = follow(res.Body, report)
	return err
}

// Build is one image to build.
type Build struct {
	Context    io.Reader // tar
	Dockerfile string    // path in the context
	Tags       []string
	Args       map[string]*string
	Labels     map[string]string
	Target     string
	Network    string
	ExtraHosts []string
	ShmSize    int64
	NoCache    bool
	Pull       bool
	Platform   string
}

// Build builds an image and returns its id; report hears of each line of output.
func (c *Client) Build(ctx context.Context, b Build, report func(string)) (id string, err error) {
	q := url.Values{"dockerfile": {b.Dockerfile}, "t": b.Tags, "rm": {"1"}}
	for name, value := range map[string]any{"buildargs": b.Args, "labels": b.Labels} {
		raw, err := json.Marshal(value)
		if err != nil {
			return "", err
		}
		q.Set(name, string(raw))
	}
	for name, value := range map[string]string{"target": b.Target, "networkmode": b.Network, "platform": b.Platform} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if len(b.ExtraHosts) > 0 {
		q.Set("extrahosts", strings.Join(b.ExtraHosts, ","))
	}
	if b.ShmSize > 0 {
		q.Set("shmsize", strconv.FormatInt(b.ShmSize, 10))
	}
	if b.NoCache {
		q.Set("nocache", "1")
	}
	if b.Pull {
		q.Set("pull", "1")
	}
	res, err := c.do(ctx, http.MethodPost, "/build", q, b.Context, http.Header{"Content-Type": {"application/x-tar"}})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	id, err = follow(res.Body, report)
	if err == nil && id == "" {
		return "", errors.New("the build ended without an image")
	}
	return id, err
}

// follow reads a stream of progress objects; an error object is the operation's error.
func follow(r io.Reader, report func(string)) (id string, err error) {
	for dec := json.NewDecoder(r); ; {
		var m struct {
			Stream, Status, ID, Error string
			Aux                       *struct{ ID string }
		}
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return id, nil
		} else if err != nil {
			return id, fmt.Errorf("read progress: %w", err)
		}
		switch {
		case m.Error != "":
			return id, errors.New(m.Error)
		case m.Aux != nil && m.Aux.ID != "":
			id = m.Aux.ID
		case m.Stream != "":
			if line := strings.TrimRight(m.Stream, "\n"); line != "" {
				report(line)
			}
		case m.Status != "" && m.ID != "":
			report(m.ID + ": " + m.Status)
		case m.Status != "":
			report(m.Status)
		}
	}
}

// maxAccounts bounds the passwd and group files that are read from images.
const maxAccounts = 1 << 20

// ReadFile reads one small file of an image, through a container that is never started.
func (c *Client) ReadFile(ctx context.Context, image, path string) ([]byte, error) {
	body, err := json.Marshal(map[string]any{"Image": image, "Cmd": []string{"-"}, "Entrypoint": []string{"-"}})
	if err != nil {
		return nil, err
	}
	res, err := c.do(ctx, http.MethodPost, "/containers/create", nil, bytes.NewReader(body), http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return nil, err
	}
	var made struct{ ID string }
	err = json.NewDecoder(res.Body).Decode(&made)
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	defer func() {
		if res, err := c.do(context.WithoutCancel(ctx), http.MethodDelete, "/containers/"+made.ID, url.Values{"v": {"1"}}, nil, nil); err == nil {
			res.Body.Close()
		}
	}()
	res, err = c.do(ctx, http.MethodGet, "/containers/"+made.ID+"/archive", url.Values{"path": {path}}, nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	tr := tar.NewReader(res.Body)
	if _, err := tr.Next(); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(tr, maxAccounts))
}
