package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// descriptors is the warden's store of open files.
type descriptors interface {
	Keep(ctx context.Context, name string, f *os.File) error
	Fetch(ctx context.Context, prefix string) (map[string]*os.File, error)
	Drop(ctx context.Context, name string) error
}

// forgetGrace is how long the warden has to close its copy of a socket.
const forgetGrace = 2 * time.Second

// listen opens a socket for as long as the daemon means to serve it. When it stops, or fails to start, the
// warden's copy goes too: nobody may be left waiting for an answer. Only a killed daemon leaves it open.
func (d *daemon) listen(ctx context.Context, name, network, address string) (net.Listener, error) {
	l, err := listen(ctx, d.engine.warden, name, network, address)
	if err != nil {
		return nil, err
	}
	d.closers.add(name+" socket", func(ctx context.Context) error {
		// Streams without an end may have used up the time to stop; this one step must not be left out.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetGrace)
		defer cancel()
		l.Close() // its server has, when there was one
		if network == "unix" {
			os.Remove(address)
		}
		return forget(ctx, d.engine.warden, name)
	})
	return l, nil
}

// listen takes back the socket that a daemon before this one listened on, or opens it and has the
// warden hold it. One that was for another address is closed first.
func listen(ctx context.Context, fds descriptors, name, network, address string) (net.Listener, error) {
	key := "listen/" + name
	held, err := fds.Fetch(ctx, key)
	if err != nil {
		return nil, err
	}
	if f := held[key]; f != nil {
		l, err := net.FileListener(f)
		f.Close()
		if err == nil && serves(l, network, address) {
			return keepPath(l), nil
		}
		if err == nil {
			l.Close()
		}
		if err := fds.Drop(ctx, key); err != nil {
			return nil, err
		}
	}
	l, err := open(ctx, network, address)
	if err != nil {
		return nil, err
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		l.Close()
		return nil, err
	}
	defer f.Close()
	if err := fds.Keep(ctx, key, f); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serves says whether a held socket is the one that is wanted now.
func serves(l net.Listener, network, address string) bool {
	if network == "unix" {
		_, err := os.Stat(address) // somebody may have removed the path
		return err == nil && l.Addr().String() == address
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	have := l.Addr().(*net.TCPAddr).Port
	return port == "0" || port == strconv.Itoa(have)
}

// keepPath stops a closed unix listener from taking its path with it: the warden still holds it.
func keepPath(l net.Listener) net.Listener {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l
}

func open(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, network, address)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: the port is taken by another program: choose another with a flag, or 0 for any", address)
	}
	if err != nil {
		return nil, err
	}
	if network == "unix" {
		// For root and its group. The umask, which is not to be changed in a process that makes other files
		// at the same moment, has kept others out so far.
		if err := os.Chmod(address, 0o660); err != nil {
			l.Close()
			return nil, err
		}
	}
	return keepPath(l), nil
}

// forget closes a listener for good: after an orderly stop, clients are refused instead of left waiting.
func forget(ctx context.Context, fds descriptors, name string) error {
	err := fds.Drop(ctx, "listen/"+name)
	if errdefs.IsUnavailable(err) {
		return nil // the warden has been shut down, and holds nothing
	}
	return err
}

// forgetSockets closes what a daemon before this one listened on, and this one did not get to serve, because it could
// not start: whoever waits for an answer has to hear that there will be none.
func (d *daemon) forgetSockets(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetGrace)
	defer cancel()
	w := d.engine.warden
	return errors.Join(forget(ctx, w, "docker"), forget(ctx, w, "registry"), forget(ctx, w, "api"))
}

// port of a TCP listener.
func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
