package op

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/semaphore"

	"slipway.dev/slipway/engine/build/snapshot"
)

// File is a file operation: a list of actions on file trees.
type File struct {
	op     *pb.FileOp
	name   string
	inputs int
	store  *snapshot.Store
	slots  *semaphore.Weighted
	now    func() time.Time
}

var _ solver.Op = (*File)(nil)

// Acquire implements solver.Op.
func (f *File) Acquire(ctx context.Context) (solver.ReleaseFunc, error) { return acquire(ctx, f.slots) }

func acquire(ctx context.Context, slots *semaphore.Weighted) (solver.ReleaseFunc, error) {
	if err := slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return func() { slots.Release(1) }, nil
}

// Exec implements solver.Op. Actions are listed in the order of their dependencies: each
// works on an input of the operation or on what an earlier action left.
func (f *File) Exec(ctx context.Context, _ solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	r := &fileRun{ctx: ctx, op: f, states: make([]*state, len(inputs)+len(f.op.Actions))}
	defer r.close()
	for i, in := range inputs {
		snap, err := snapshot.Of(in)
		if err != nil {
			return nil, err
		}
		r.states[i] = &state{snap: snap}
	}
	r.countUses(len(inputs))
	outputs := map[int]*snapshot.Snapshot{}
	for i, action := range f.op.Actions {
		s, err := r.perform(action)
		if err != nil {
			return nil, err
		}
		r.states[len(inputs)+i] = s
		if action.Output == -1 && r.uses[len(inputs)+i] <= 1 {
			continue // the next action goes on in the same draft
		}
		if err := r.commit(s); err != nil {
			return nil, err
		}
		if action.Output != -1 {
			outputs[int(action.Output)] = s.snap
		}
	}
	return f.results(outputs)
}

func (f *File) results(outputs map[int]*snapshot.Snapshot) ([]solver.Result, error) {
	if len(outputs) == 0 {
		return nil, errors.New("file operation has no outputs")
	}
	out := make([]solver.Result, 0, len(outputs))
	for i := range len(outputs) {
		snap, ok := outputs[i]
		if !ok {
			return nil, fmt.Errorf("file operation has no output %d", i)
		}
		out = append(out, f.store.NewResult(snap, f.name))
	}
	return out, nil
}

// state is a file tree during the run: committed (snap, or nothing for the empty tree) or
// still being written (draft).
type state struct {
	snap    *snapshot.Snapshot
	draft   *snapshot.Draft
	release func() // of the directory a committed state is open as
	dir     string
}

type fileRun struct {
	ctx    context.Context
	op     *File
	states []*state
	uses   []int // how many actions write on or read a state
}

func (r *fileRun) countUses(inputs int) {
	r.uses = make([]int, len(r.states))
	count := func(i int64) {
		if i >= 0 && int(i) < len(r.uses) {
			r.uses[i]++
		}
	}
	for _, a := range r.op.op.Actions {
		count(int64(a.Input))
		count(int64(a.SecondaryInput))
	}
	for i := range inputs {
		r.uses[i] = 0 // already committed
	}
}

func (r *fileRun) close() {
	for _, s := range r.states {
		if s == nil {
			continue
		}
		if s.release != nil {
			s.release()
		}
		if s.draft != nil {
			s.draft.Discard()
		}
	}
}

func (r *fileRun) state(i int64) (*state, error) {
	if i == -1 {
		return &state{}, nil
	}
	if i < 0 || int(i) >= len(r.states) || r.states[i] == nil {
		return nil, fmt.Errorf("file operation refers to input %d before it exists", i)
	}
	return r.states[i], nil
}

// perform does one action and returns the state it leaves, as a draft.
func (r *fileRun) perform(action *pb.FileAction) (*state, error) {
	base, err := r.state(int64(action.Input))
	if err != nil {
		return nil, err
	}
	s, err := r.writable(base)
	if err != nil {
		return nil, err
	}
	dir, err := s.draft.Dir()
	if err == nil {
		err = r.act(action, dir)
	}
	if err != nil {
		s.draft.Discard()
		s.draft = nil
		return nil, err
	}
	return s, nil
}

// writable hands over the draft of a state that is still being written, or starts one.
func (r *fileRun) writable(base *state) (*state, error) {
	if base.draft != nil {
		s := &state{draft: base.draft}
		base.draft = nil
		return s, nil
	}
	d, err := r.op.store.NewDraft(r.ctx, base.snap)
	if err != nil {
		return nil, err
	}
	return &state{draft: d}, nil
}

func (r *fileRun) commit(s *state) error {
	d := s.draft
	s.draft = nil
	snap, err := d.Commit(r.ctx, r.op.name, r.op.now())
	if err != nil {
		return err
	}
	s.snap = snap
	return nil
}

// readable opens the state with index i as a directory.
func (r *fileRun) readable(i int64) (string, error) {
	s, err := r.state(i)
	if err != nil {
		return "", err
	}
	if s.draft != nil {
		return s.draft.Dir()
	}
	if s.dir == "" {
		s.dir, s.release, err = r.op.store.Open(r.ctx, s.snap)
	}
	return s.dir, err
}

func (r *fileRun) act(action *pb.FileAction, dir string) error {
	switch a := action.Action.(type) {
	case *pb.FileAction_Mkdir:
		o, err := r.owner(a.Mkdir.Owner)
		if err != nil {
			return err
		}
		return mkdir(dir, a.Mkdir, o)
	case *pb.FileAction_Mkfile:
		o, err := r.owner(a.Mkfile.Owner)
		if err != nil {
			return err
		}
		return mkfile(dir, a.Mkfile, o)
	case *pb.FileAction_Symlink:
		o, err := r.owner(a.Symlink.Owner)
		if err != nil {
			return err
		}
		return symlink(dir, a.Symlink, o)
	case *pb.FileAction_Rm:
		return remove(dir, a.Rm)
	case *pb.FileAction_Copy:
		return r.copy(action, a.Copy, dir)
	}
	return fmt.Errorf("unknown file action %T", action.Action)
}

func (r *fileRun) copy(action *pb.FileAction, a *pb.FileActionCopy, dir string) error {
	o, err := r.owner(a.Owner)
	if err != nil {
		return err
	}
	src, err := r.readable(int64(action.SecondaryInput))
	if err != nil {
		return err
	}
	return copyFiles(r.ctx, src, dir, a, o)
}

// owner resolves who new files belong to; nil keeps what they have.
func (r *fileRun) owner(o *pb.ChownOpt) (*ids, error) {
	if o == nil {
		return nil, nil
	}
	out := &ids{}
	if u := o.User; u != nil {
		switch u := u.User.(type) {
		case *pb.UserOpt_ByID:
			out.uid, out.gid = int(u.ByID), int(u.ByID)
		case *pb.UserOpt_ByName:
			if err := r.lookup(u.ByName, lookupUser, out); err != nil {
				return nil, err
			}
		}
	}
	if g := o.Group; g != nil {
		switch g := g.User.(type) {
		case *pb.UserOpt_ByID:
			out.gid = int(g.ByID)
		case *pb.UserOpt_ByName:
			if err := r.lookup(g.ByName, lookupGroup, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (r *fileRun) lookup(n *pb.NamedUserOpt, find func(root, name string, out *ids) error, out *ids) error {
	if n == nil {
		return errors.New("file operation names no owner")
	}
	root, err := r.readable(n.Input)
	if err != nil {
		return err
	}
	if err := find(root, n.Name, out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
