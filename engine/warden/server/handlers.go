package server

import (
	"os"
	"sort"

	"slipway.dev/slipway/engine/warden"
)

// handler answers one method. The descriptors it returns belong to the reply; those of the request that it wants to keep
// it takes out of the message.
type handler struct {
	early bool // served before recovery, too
	long  bool // waits for something outside: does not count as at work
	run   func(c *conn, m *warden.Message) (body any, fds []int, err error)
}

// handlers is the protocol: read-only after initialisation.
var handlers = map[string]handler{
	warden.MethodHello:         {early: true, run: hello},
	warden.MethodAdopt:         {early: true, run: with((*Server).adopt)},
	warden.MethodRecover:       {early: true, run: doRecover},
	warden.MethodStart:         {run: start},
	warden.MethodExec:          {run: execute},
	warden.MethodAttach:        {run: attach},
	warden.MethodSignal:        {run: target((*Server).signal)},
	warden.MethodResize:        {run: target((*Server).resize)},
	warden.MethodPause:         {run: target((*Server).pause)},
	warden.MethodResume:        {run: target((*Server).resume)},
	warden.MethodUpdate:        {run: target((*Server).update)},
	warden.MethodDelete:        {run: target((*Server).delete)},
	warden.MethodStats:         {run: query((*Server).stats)},
	warden.MethodProcesses:     {run: query((*Server).processes)},
	warden.MethodWait:          {long: true, run: wait},
	warden.MethodList:          {run: list},
	warden.MethodCreateSandbox: {run: createSandbox},
	warden.MethodRemoveSandbox: {run: target((*Server).removeSandbox)},
	warden.MethodSetCgroup:     {run: target((*Server).setCgroup)},
	warden.MethodRemoveCgroup:  {run: target((*Server).removeCgroup)},
	warden.MethodKeep:          {run: with((*Server).keep)},
	warden.MethodDrop:          {run: target((*Server).drop)},
	warden.MethodShutdown:      {early: true, run: shutdown},
}

// nothing is the body of a reply that says only: done.
type nothing struct{}

func target(f func(*Server, warden.Target) error) func(*conn, *warden.Message) (any, []int, error) {
	return func(c *conn, m *warden.Message) (any, []int, error) {
		var t warden.Target
		if err := warden.Decode(m.Body, &t); err != nil {
			return nil, nil, err
		}
		return nothing{}, nil, f(c.srv, t)
	}
}

func query[T any](f func(*Server, warden.Target) (T, error)) func(*conn, *warden.Message) (any, []int, error) {
	return func(c *conn, m *warden.Message) (any, []int, error) {
		var t warden.Target
		if err := warden.Decode(m.Body, &t); err != nil {
			return nil, nil, err
		}
		v, err := f(c.srv, t)
		return v, nil, err
	}
}

// with is for requests that bring descriptors.
func with(f func(*Server, *conn, *warden.Message, warden.Hold) error) func(*conn, *warden.Message) (any, []int, error) {
	return func(c *conn, m *warden.Message) (any, []int, error) {
		var h warden.Hold
		if err := warden.Decode(m.Body, &h); err != nil {
			return nil, nil, err
		}
		return nothing{}, nil, f(c.srv, c, m, h)
	}
}

// hello greets a daemon and sends it a duplicate of everything; the reply comes last.
func hello(c *conn, m *warden.Message) (any, []int, error) {
	var h warden.Hello
	if err := warden.Decode(m.Body, &h); err != nil {
		return nil, nil, err
	}
	reply := warden.HelloReply{Version: warden.Version, Pid: os.Getpid(), Instance: c.srv.instance}
	select {
	case <-c.srv.recovered:
	default:
		reply.Fresh = true
		return reply, nil, nil
	}
	for _, h := range c.srv.holders() {
		m, err := h.hold()
		if err != nil {
			return nil, nil, err
		}
		if m == nil {
			continue
		}
		c.send(m)
		if m, _ := h.hold(); m == nil { // it ended meanwhile, and its release may have overtaken the hold
			c.send(&warden.Message{Method: warden.PushRelease, Body: warden.Encode(warden.Hold{Key: h.holderKey()})})
		} else {
			m.Discard()
		}
	}
	return reply, nil, nil
}

// holder is what has descriptors that the daemon duplicates. hold returns nil when it has none left.
type holder interface {
	holderKey() warden.Key
	hold() (*warden.Message, error)
}

func (s *Server) holders() []holder {
	var all []holder
	for _, p := range s.all() {
		all = append(all, p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sb := range s.sandboxes {
		all = append(all, sb)
	}
	for name := range s.files {
		all = append(all, keptFile{s, name})
	}
	return all
}

// all returns every process, first ones before execs of the same container.
func (s *Server) all() []*process {
	s.mu.Lock()
	containers := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		containers = append(containers, c)
	}
	s.mu.Unlock()
	sort.Slice(containers, func(i, j int) bool { return containers[i].id < containers[j].id })
	var all []*process
	for _, c := range containers {
		all = append(all, c.processes()...)
	}
	return all
}

func list(c *conn, _ *warden.Message) (any, []int, error) {
	states := []warden.ProcessState{}
	for _, p := range c.srv.all() {
		states = append(states, p.snapshot())
	}
	return states, nil, nil
}

func wait(c *conn, m *warden.Message) (any, []int, error) {
	var t warden.Target
	if err := warden.Decode(m.Body, &t); err != nil {
		return nil, nil, err
	}
	p, err := c.srv.process(t)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-p.exited:
		return p.snapshot(), nil, nil
	case <-c.done:
		return nil, nil, c.ctx.Err()
	}
}

func attach(c *conn, m *warden.Message) (any, []int, error) {
	var t warden.Target
	if err := warden.Decode(m.Body, &t); err != nil {
		return nil, nil, err
	}
	p, err := c.srv.process(t)
	if err != nil {
		return nil, nil, err
	}
	id, fds, err := p.attach()
	if err != nil {
		return nil, nil, err
	}
	return warden.Started{State: p.snapshot(), AttachID: id}, fds, nil
}
