package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func (d *demo) start(ctx context.Context) error {
	d.step("Start a daemon with directories of its own")
	began := time.Now()
	if err := d.serve(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(d.portFile(), []byte(strconv.Itoa(d.port)), 0o644); err != nil {
		return err
	}
	r, err := d.record()
	if err != nil {
		return err
	}
	d.saw("ready after %.2f s: Docker API on %s/docker.sock, Kubernetes API on port %d", time.Since(began).Seconds(), d.runDir, r.APIPort)
	return nil
}

func (d *demo) serve(ctx context.Context) error {
	return d.show(ctx, "1", "serve", "--detach", "--data-dir", d.dataDir, "--run-dir", d.runDir, "--api-port", "0", "--registry-port", "0")
}

func (d *demo) build(ctx context.Context) error {
	d.step("Build the guestbook from its Dockerfiles, without any registry, and bring it up")
	if err := d.show(ctx, "1", "build", "-q", "-t", "guestbook/base", "base"); err != nil {
		return err
	}
	began := time.Now()
	if err := d.show(ctx, "1", "up"); err != nil {
		return err
	}
	d.saw("built and up after %.1f s", time.Since(began).Seconds())
	if err := d.show(ctx, "1", "ps"); err != nil {
		return err
	}
	began = time.Now()
	if err := d.show(ctx, "1", "up"); err != nil {
		return err
	}
	d.saw("a second up, with nothing changed, took %.2f s", time.Since(began).Seconds())
	return nil
}

func (d *demo) spread(ctx context.Context) error {
	d.step("Ask the one published port who answers")
	l := startLoad(ctx, d.url())
	if err := l.wait(ctx, 300); err != nil {
		return err
	}
	l.stop()
	for _, name := range sorted(l.replicas) {
		d.saw("%4d answers from %s", l.replicas[name], name)
	}
	d.promise(len(l.replicas) == 3, "all three replicas answer (%d do)", len(l.replicas))
	d.promise(l.failed == 0, "no request fails: %s", l.summary())
	return nil
}

const greeting = "Signed before everything was killed"

func (d *demo) sign(ctx context.Context) error {
	d.step("Sign the guestbook: front end, api and store, over two networks, into a volume")
	res, err := fresh().PostForm(d.url()+"/", url.Values{"name": {"The demo"}, "message": {greeting}})
	if err != nil {
		return err
	}
	res.Body.Close()
	d.promise(res.StatusCode == http.StatusOK && d.signed(), "the entry is on the page (%s)", res.Status)
	return nil
}

// fresh makes a client that opens a connection of its own: a kept one would stay with an old replica until that goes.
func fresh() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

// signed tells whether the page shows the entry.
func (d *demo) signed() bool {
	body, err := fetch(fresh(), d.url()+"/")
	return err == nil && strings.Contains(body, greeting)
}

func (d *demo) kill(ctx context.Context) error {
	d.step("Kill a replica with SIGKILL while requests go on")
	list, err := d.replicas(ctx, "web")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("web has no replicas")
	}
	victim := list[0]
	pid, err := d.process(ctx, victim.Name)
	if err != nil {
		return err
	}
	l := startLoad(ctx, d.url())
	defer l.stop()
	if err := l.wait(ctx, 100); err != nil {
		return err
	}
	d.saw("kill -9 %d, which is %s", pid, victim.Name)
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	err = d.await(ctx, "web", "replaced", func(now []replica) bool {
		healthy, replaced := 0, true
		for _, r := range now {
			if r.Status == "running (healthy)" {
				healthy++
			}
			replaced = replaced && (r.Name != victim.Name || r.Restarts > victim.Restarts)
		}
		return replaced && healthy == len(list)
	})
	if err != nil {
		return err
	}
	d.promise(true, "replaced after %.1f s, by nobody's hand", time.Since(began).Seconds())
	if err := l.wait(ctx, 200); err != nil {
		return err
	}
	l.stop()
	d.saw("meanwhile: %s", l.summary())
	// Until the node hears of the death, a moment later, connections to the dead process are refused: no balancer can know earlier.
	d.promise(l.failed*20 <= l.requests, "the others go on answering: %.1f %% of the requests fail (at most 5 %%)", 100*float64(l.failed)/float64(l.requests))
	return nil
}

func (d *demo) update(ctx context.Context) error {
	d.step("Roll out version 2 under load")
	l := startLoad(ctx, d.url())
	defer l.stop()
	if err := l.wait(ctx, 100); err != nil {
		return err
	}
	if err := d.show(ctx, "2", "up"); err != nil {
		return err
	}
	if err := l.wait(ctx, 200); err != nil {
		return err
	}
	l.stop()
	d.saw("answers by version: 1: %d, 2: %d", l.versions["1"], l.versions["2"])
	d.promise(l.failed == 0, "no request fails during the update: %s", l.summary())
	after, err := fetch(fresh(), d.url()+"/whoami")
	d.promise(err == nil && strings.Contains(after, "version 2"), "version 2 answers now: %s", strings.TrimSpace(after))
	return nil
}

func (d *demo) scale(ctx context.Context) error {
	d.step("Scale up to six replicas and down to two, under load")
	all := startLoad(ctx, d.url())
	defer all.stop()
	for _, n := range []int{6, 2} {
		if err := d.show(ctx, "2", "scale", fmt.Sprintf("web=%d", n)); err != nil {
			return err
		}
		// Those that go finish what they are answering first.
		if err := d.await(ctx, "web", "scaled", func(now []replica) bool { return len(now) == n }); err != nil {
			return err
		}
		l := startLoad(ctx, d.url())
		if err := l.wait(ctx, 400); err != nil {
			return err
		}
		l.stop()
		d.promise(len(l.replicas) == n, "%d replicas answer (%d do)", n, len(l.replicas))
	}
	all.stop()
	d.promise(all.failed == 0, "no request fails while scaling: %s", all.summary())
	return nil
}

func (d *demo) restartStore(ctx context.Context) error {
	d.step("Kill the store with SIGKILL: what was signed must be there again")
	list, err := d.replicas(ctx, "store")
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("the store should be one replica, not %+v", list)
	}
	pid, err := d.process(ctx, list[0].Name)
	if err != nil {
		return err
	}
	d.saw("kill -9 %d, which is %s", pid, list[0].Name)
	began := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	err = d.await(ctx, "store", "restarted", func(now []replica) bool {
		return len(now) == 1 && now[0].Restarts > list[0].Restarts && now[0].Status == "running (healthy)"
	})
	if err != nil {
		return err
	}
	d.saw("restarted and healthy after %.1f s", time.Since(began).Seconds())
	d.promise(d.signed(), "the entry is still on the page")
	return nil
}

func (d *demo) restartDaemon(ctx context.Context) error {
	d.step("Kill the daemon itself with SIGKILL, and start it again, under load")
	before, err := d.record()
	if err != nil {
		return err
	}
	l := startLoad(ctx, d.url())
	defer l.stop()
	if err := l.wait(ctx, 100); err != nil {
		return err
	}
	d.saw("kill -9 %d, the daemon", before.PID)
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		return err
	}
	if err := l.wait(ctx, 300); err != nil {
		return err
	}
	d.saw("without a daemon, so far: %s", l.answers())
	began := time.Now()
	if err := d.serve(ctx); err != nil {
		return err
	}
	d.saw("ready again after %.2f s", time.Since(began).Seconds())
	if err := l.wait(ctx, 200); err != nil {
		return err
	}
	l.stop()
	d.promise(l.failed == 0, "no request fails while the daemon is dead and comes back: %s", l.summary())
	list, err := d.replicas(ctx, "web")
	if err != nil {
		return err
	}
	d.promise(len(list) == 2, "the new daemon knows the two replicas (%d)", len(list))
	return d.show(ctx, "2", "ps")
}

func (l *load) answers() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d requests, %d failed", l.requests, l.failed)
}
