package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"
)

// load keeps requests going: half of the workers open a connection for each request, half keep theirs.
// Every fourth request asks for the page, which goes through the api to the store; the others ask who answers.
type load struct {
	url    string
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	requests int
	failed   int
	replicas map[string]int
	versions map[string]int
	errors   map[string]int
	slowest  time.Duration
}

const workers = 8

// pause between a worker's requests, so that the load leaves the machine's other work some room.
const pause = 5 * time.Millisecond

func startLoad(ctx context.Context, url string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{url: url, cancel: cancel, replicas: map[string]int{}, versions: map[string]int{}, errors: map[string]int{}}
	for i := range workers {
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: i%2 == 0}}
		l.tasks.Go(func() {
			defer client.CloseIdleConnections()
			for n := i; ctx.Err() == nil; n++ {
				path := "/whoami"
				if n%4 == 0 {
					path = "/"
				}
				began := time.Now()
				body, err := fetch(client, url+path)
				l.note(path, body, err, time.Since(began))
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	return l
}

// fetch is not cancelled with the load: a request under way is finished, so that it counts.
func fetch(client *http.Client, url string) (string, error) {
	res, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.200s", res.Status, body)
	}
	return string(body), err
}

func (l *load) note(path, body string, err error, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	l.slowest = max(l.slowest, took)
	if err != nil {
		l.failed++
		if len(l.errors) < 20 {
			l.errors[err.Error()]++
		}
		return
	}
	if replica, version, ok := strings.Cut(strings.TrimSpace(body), " version "); ok && path == "/whoami" {
		l.replicas[replica]++
		l.versions[version]++
	}
}

// wait returns when another n requests were answered.
func (l *load) wait(ctx context.Context, n int) error {
	l.mu.Lock()
	target := l.requests + n
	l.mu.Unlock()
	for {
		l.mu.Lock()
		reached := l.requests >= target
		l.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// stop ends the load and returns when the last request has.
func (l *load) stop() *load {
	l.cancel()
	l.tasks.Wait()
	return l
}

// summary is one line, and one for each kind of failure.
func (l *load) summary() string {
	text := fmt.Sprintf("%d requests, %d failed, slowest %d ms", l.requests, l.failed, l.slowest.Milliseconds())
	for _, e := range sorted(l.errors) {
		text += fmt.Sprintf("\n      %d x %s", l.errors[e], e)
	}
	return text
}

func sorted(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
