package op

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	fscopy "github.com/tonistiigi/fsutil/copy"

	"slipway.dev/slipway/engine/build/snapshot"
)

// Runner runs a program in a container.
type Runner interface {
	// Run returns when the program has ended and nothing of it is left: no process, mount,
	// network or cgroup. A program that ran and failed is an *ExitError.
	Run(ctx context.Context, p Process) error
	// CacheDir returns the directory of a cache mount and a function that gives it back.
	// A private one that is in use gives another directory; a locked one waits.
	CacheDir(ctx context.Context, id string, sharing pb.CacheSharingOpt, init func(dir string) error) (dir string, release func(), err error)
}

// Process is a program to run.
type Process struct {
	Name         string // for messages and logs
	Args, Env    []string
	Cwd, User    string
	Hostname     string
	ExtraHosts   []*pb.HostIP
	Network      pb.NetMode
	Insecure     bool
	CgroupParent string
	Resources    *pb.LinuxResources
	Ulimits      []*pb.Ulimit
	ReadonlyRoot bool
	Root         []mount.Mount // how to mount the root file system
	Below        string        // the root file system as it was, read-only, to look things up in
	Upper        string        // where changes to it land
	Mounts       []Mount       // parents first
	Stdout       io.Writer
	Stderr       io.Writer
	RemoveStubs  bool // mount points are removed with the parents that were made for them
}

// Mount is one mount of a process.
type Mount struct {
	Dest string
	// Lower are directories to be stacked, topmost first, or one directory or file that is
	// mounted as it is. None of these, Bind and Content: a tmpfs.
	Lower []string
	// Upper and Work, when set, take what is written.
	Upper, Work string
	Bind        string // a directory or file mounted writable as it is
	Content     []byte // when not nil: a file with this content, never on disk
	Mode        uint32 // of Content
	UID, GID    uint32
	Size        int64 // of a tmpfs, 0 for the default
	Readonly    bool
}

// CacheMount is a directory behind RUN --mount=type=cache.
type CacheMount struct {
	ID, Name string
	Size     int64
	Used     time.Time
	InUse    bool
}

// ExitError is a program's failure.
type ExitError struct {
	Args []string
	Code int
	OOM  bool
}

// ExitStatus is the program's exit code.
func (e *ExitError) ExitStatus() int { return e.Code }

func (e *ExitError) Error() string {
	why := ""
	switch {
	case e.OOM:
		why = " (it ran out of memory)"
	case e.Code > 128 && e.Code < 160:
		why = fmt.Sprintf(" (killed by signal %d)", e.Code-128)
	}
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d%s", strings.Join(e.Args, " "), e.Code, why)
}

// Exec is an exec operation: RUN.
type Exec struct {
	op       *pb.ExecOp
	platform *pb.Platform
	name     string
	inputs   int
	o        Options
	builder  solver.Builder
	// resources limit the program; they change how fast it is, not what it makes.
	resources *pb.LinuxResources
}

var _ solver.Op = (*Exec)(nil)

// Acquire implements solver.Op.
func (e *Exec) Acquire(ctx context.Context) (solver.ReleaseFunc, error) {
	return acquire(ctx, e.o.Slots)
}

// CacheMap implements solver.Op, as BuildKit's llbsolver/ops/exec.go: what does not
// change the result is taken out first.
func (e *Exec) CacheMap(context.Context, solver.JobContext, int) (*solver.CacheMap, bool, error) {
	op := e.op.CloneVT()
	for _, h := range op.Meta.ExtraHosts {
		h.IP = ""
	}
	for _, m := range op.Mounts {
		m.Selector = ""
		if forgetCacheID(m) {
			m.CacheOpt.ID, m.CacheOpt.Sharing = "", 0
		}
	}
	op.Meta.ProxyEnv = nil
	if onlyRootMount(op.Mounts) {
		op.Mounts = nil
	}
	data, err := json.Marshal(struct {
		Type       string
		Exec       *pb.ExecOp
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
	}{"buildkit.exec.v0", op, e.platform.OS, e.platform.Architecture, e.platform.Variant, e.platform.OSVersion, e.platform.OSFeatures})
	if err != nil {
		return nil, false, err
	}
	m := newCacheMap(digest.FromBytes(data), e.inputs)
	return m, true, e.addDeps(m)
}

// forgetCacheID reports whether a cache mount has an id other than the front end's own.
func forgetCacheID(m *pb.Mount) bool {
	if m.CacheOpt == nil || (m.CacheOpt.ID == m.Dest && m.CacheOpt.Sharing == 0) {
		return false
	}
	_, id, ok := strings.Cut(m.CacheOpt.ID, "/")
	return !ok || id != m.Dest || m.CacheOpt.Sharing != 0
}

func onlyRootMount(mounts []*pb.Mount) bool {
	if len(mounts) != 1 {
		return false
	}
	m := mounts[0]
	return m.Dest == "/" && m.Selector == "" && !m.Readonly && m.MountType == pb.MountType_BIND &&
		m.CacheOpt == nil && m.SSHOpt == nil && m.SecretOpt == nil && m.ResultID == ""
}

// addDeps makes the key depend on the content of inputs that are only read.
func (e *Exec) addDeps(m *solver.CacheMap) error {
	selectors := make([][]string, e.inputs)
	byContent := make([]bool, e.inputs)
	for _, mnt := range e.op.Mounts {
		switch mnt.MountType {
		case pb.MountType_SECRET, pb.MountType_SSH, pb.MountType_TMPFS:
			continue
		}
		if mnt.Input == int64(pb.Empty) {
			continue
		}
		sel := path.Join("/", mnt.Selector)
		selectors[mnt.Input] = append(selectors[mnt.Input], sel)
		// Content may stand for an input only where nothing outside the selection can end
		// up in a result.
		safe := mnt.Output == int64(pb.SkipOutput) || mnt.Readonly || sel == "/"
		switch mnt.ContentCache {
		case pb.MountContentCache_OFF:
			safe = false
		case pb.MountContentCache_ON:
			if !safe {
				return fmt.Errorf("mount %s cannot be cached by content", mnt.Dest)
			}
		case pb.MountContentCache_DEFAULT:
			safe = safe && mnt.Dest != pb.RootMount
		}
		byContent[mnt.Input] = safe
	}
	for i, paths := range selectors {
		if len(paths) == 0 {
			continue
		}
		sel := make([][]byte, 0, len(paths))
		for _, p := range paths {
			sel = append(sel, []byte(p))
		}
		m.Deps[i].Selector = digest.FromBytes(bytes.Join(sel, []byte{0}))
		if byContent[i] {
			m.Deps[i].ComputeDigestFunc = contentKey(e.o.Store, followed(dedupePaths(paths)))
		}
	}
	return nil
}

func followed(paths []string) []Selector {
	out := make([]Selector, 0, len(paths))
	for _, p := range paths {
		if p == "" || p == "/" {
			return nil
		}
		out = append(out, Selector{Path: p, FollowLinks: true})
	}
	return out
}

// Exec implements solver.Op.
func (e *Exec) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) (_ []solver.Result, err error) {
	r := &execRun{e: e, ctx: ctx}
	defer r.close()
	for _, in := range inputs {
		snap, err := snapshot.Of(in)
		if err != nil {
			return nil, err
		}
		r.inputs = append(r.inputs, snap)
	}
	if r.job, err = e.job(ctx); err != nil {
		return nil, err
	}
	p, err := r.prepare()
	if err != nil {
		return nil, err
	}
	out := newLogs(ctx)
	defer out.close()
	p.Stdout, p.Stderr = out.stream(1), out.stream(2)
	if err := e.o.Runner.Run(ctx, p); err != nil && !e.expected(err) {
		return nil, err
	}
	return r.results()
}

func (e *Exec) expected(err error) bool {
	var exit *ExitError
	return errors.As(err, &exit) && slices.Contains(e.op.Meta.ValidExitCodes, int32(exit.Code))
}

// job returns what the build that asked first brought along; builds that share the vertex
// have equal operations, and secrets are no part of those, as with BuildKit.
func (e *Exec) job(ctx context.Context) (*Job, error) {
	var found *Job
	err := e.builder.EachValue(ctx, JobKey, func(v any) error {
		if j, ok := v.(*Job); ok && found == nil {
			found = j
		}
		return nil
	})
	if found == nil {
		found = &Job{}
	}
	return found, err
}

// execRun is one run of an exec operation.
type execRun struct {
	e       *Exec
	ctx     context.Context
	job     *Job
	inputs  []*snapshot.Snapshot
	outputs []output
	release []func()
}

// output is a mount whose content becomes a result, in order.
type output struct {
	snap  *snapshot.Snapshot // unchanged input
	draft *snapshot.Draft
}

func (r *execRun) close() {
	for _, fn := range slices.Backward(r.release) {
		fn()
	}
	for _, o := range r.outputs {
		if o.draft != nil {
			o.draft.Discard()
		}
	}
}

func (r *execRun) input(m *pb.Mount) *snapshot.Snapshot {
	if m.Input == int64(pb.Empty) {
		return nil
	}
	return r.inputs[m.Input]
}

func (r *execRun) prepare() (Process, error) {
	op := r.e.op
	p := Process{
		Name: r.e.name, Args: op.Meta.Args, Env: slices.Clone(op.Meta.Env), Cwd: op.Meta.Cwd, User: op.Meta.User,
		Hostname: op.Meta.Hostname, ExtraHosts: op.Meta.ExtraHosts, Network: op.Network,
		Insecure: op.Security == pb.SecurityMode_INSECURE, CgroupParent: op.Meta.CgroupParent, Ulimits: op.Meta.Ulimit,
		RemoveStubs: op.Meta.RemoveMountStubsRecursive, Resources: r.e.resources,
	}
	if p.Insecure {
		return p, errors.New("RUN --security=insecure is not allowed by this daemon")
	}
	for _, d := range op.CdiDevices {
		if !d.Optional {
			return p, fmt.Errorf("device %q is not available: CDI devices are not supported", d.Name)
		}
	}
	p.Env = append(p.Env, proxyEnv(op.Meta.ProxyEnv)...)
	if !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		p.Env = append(p.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	for _, s := range op.Secretenv {
		v, ok := r.job.Secrets[s.ID]
		if !ok && !s.Optional {
			return p, missingSecret(s.ID)
		}
		if ok {
			p.Env = append(p.Env, s.Name+"="+string(v))
		}
	}
	for _, m := range op.Mounts {
		if err := r.mount(&p, m); err != nil {
			return p, err
		}
	}
	slices.SortStableFunc(p.Mounts, func(a, b Mount) int { return cmp.Compare(a.Dest, b.Dest) })
	return p, nil
}

func missingSecret(id string) error {
	return fmt.Errorf("secret %q was not given to this build: pass --secret id=%s,src=FILE", id, id)
}

func proxyEnv(p *pb.ProxyEnv) []string {
	if p == nil {
		return nil
	}
	var out []string
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HttpProxy}, {"HTTPS_PROXY", p.HttpsProxy}, {"FTP_PROXY", p.FtpProxy}, {"NO_PROXY", p.NoProxy}, {"ALL_PROXY", p.AllProxy},
	} {
		if v.value != "" {
			out = append(out, v.name+"="+v.value, strings.ToLower(v.name)+"="+v.value)
		}
	}
	return out
}

func (r *execRun) mount(p *Process, m *pb.Mount) error {
	if m.Dest == pb.RootMount {
		return r.root(p, m)
	}
	mnt := Mount{Dest: m.Dest, Readonly: m.Readonly}
	if !filepath.IsAbs(mnt.Dest) {
		mnt.Dest = filepath.Join("/", p.Cwd, mnt.Dest)
	}
	var err error
	switch m.MountType {
	case pb.MountType_BIND:
		err = r.bind(&mnt, m)
	case pb.MountType_CACHE:
		err = r.cache(&mnt, m)
	case pb.MountType_TMPFS:
		if m.TmpfsOpt != nil {
			mnt.Size = m.TmpfsOpt.Size
		}
	case pb.MountType_SECRET:
		ok, serr := r.secret(&mnt, m)
		if serr != nil || !ok {
			return serr
		}
	case pb.MountType_SSH:
		if m.SSHOpt != nil && m.SSHOpt.Optional {
			return nil
		}
		return errors.New("RUN --mount=type=ssh needs an SSH agent, and this build brought none: agents are not forwarded yet")
	default:
		err = fmt.Errorf("mount type %s is not supported", m.MountType)
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	p.Mounts = append(p.Mounts, mnt)
	return nil
}

func (r *execRun) root(p *Process, m *pb.Mount) error {
	snap := r.input(m)
	if snap != nil && snap.View != nil {
		return errors.New("a build context cannot be the root file system of a RUN")
	}
	below, release, err := r.e.o.Store.Open(r.ctx, snap)
	if err != nil {
		return err
	}
	r.release = append(r.release, release)
	draft, err := r.e.o.Store.NewDraft(r.ctx, snap)
	if err != nil {
		return err
	}
	p.Below, p.Root, p.Upper, p.ReadonlyRoot = below, draft.Mounts(), draft.Upper(), m.Readonly
	if m.Output == int64(pb.SkipOutput) {
		r.release = append(r.release, draft.Discard)
		return nil
	}
	r.outputs = append(r.outputs, output{draft: draft})
	return nil
}

// bind mounts an input: as it is, or writable with the writes thrown away or kept.
func (r *execRun) bind(mnt *Mount, m *pb.Mount) error {
	snap := r.input(m)
	if m.Output != int64(pb.SkipOutput) {
		return r.bindOutput(mnt, m, snap)
	}
	var file bool
	if snap != nil {
		var err error
		if mnt.Lower, file, err = r.e.o.Store.Parts(r.ctx, snap, m.Selector); err != nil {
			return r.absent(snap, m.Selector, err)
		}
	}
	if m.Readonly && snap != nil {
		return nil
	}
	scratch, discard, err := r.e.o.Store.NewScratch(r.ctx)
	if err != nil {
		return err
	}
	r.release = append(r.release, discard)
	switch {
	case snap == nil:
		mnt.Bind = scratch.Upper
	case file:
		mnt.Bind = filepath.Join(scratch.Upper, "file")
		err := fscopy.Copy(r.ctx, filepath.Dir(mnt.Lower[0]), filepath.Base(mnt.Lower[0]), scratch.Upper, "file")
		mnt.Lower = nil
		return err
	default:
		mnt.Upper, mnt.Work = scratch.Upper, scratch.Work
	}
	return nil
}

func (r *execRun) absent(snap *snapshot.Snapshot, selected string, err error) error {
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	where := "the source of the mount"
	if snap.View != nil {
		where = "the build context"
	}
	return &NotFoundError{Path: selected, Where: where}
}

// bindOutput mounts an input whose state afterwards is a result.
func (r *execRun) bindOutput(mnt *Mount, m *pb.Mount, snap *snapshot.Snapshot) error {
	if m.Readonly && snap != nil {
		r.outputs = append(r.outputs, output{snap: snap})
		var err error
		mnt.Lower, _, err = r.e.o.Store.Parts(r.ctx, snap, m.Selector)
		return err
	}
	if m.Selector != "" && m.Selector != "/" {
		return errors.New("a part of a file system cannot be written and kept")
	}
	draft, err := r.e.o.Store.NewDraft(r.ctx, snap)
	if err != nil {
		return err
	}
	r.outputs = append(r.outputs, output{draft: draft})
	mnt.Lower, mnt.Upper, mnt.Work = draft.Overlay()
	return nil
}

func (r *execRun) cache(mnt *Mount, m *pb.Mount) error {
	id, sharing := m.Dest, pb.CacheSharingOpt_SHARED
	if m.CacheOpt != nil {
		sharing = m.CacheOpt.Sharing
		if m.CacheOpt.ID != "" {
			id = m.CacheOpt.ID
		}
	}
	snap := r.input(m)
	if snap != nil {
		id += " on " + snap.Chain().String()
	}
	fill := func(dir string) error {
		if snap == nil {
			return nil
		}
		from, release, err := r.e.o.Store.Open(r.ctx, snap)
		if err != nil {
			return err
		}
		defer release()
		src, err := within(from, m.Selector)
		if err != nil {
			return err
		}
		return copyTree(r.ctx, src, dir)
	}
	dir, release, err := r.e.o.Runner.CacheDir(r.ctx, id, sharing, fill)
	if err != nil {
		return err
	}
	r.release = append(r.release, release)
	mnt.Bind = dir
	if m.Output != int64(pb.SkipOutput) && snap != nil {
		r.outputs = append(r.outputs, output{snap: snap})
	}
	return nil
}

func (r *execRun) secret(mnt *Mount, m *pb.Mount) (bool, error) {
	s := m.SecretOpt
	if s == nil || s.ID == "" {
		return false, errors.New("secret mount without an id")
	}
	v, ok := r.job.Secrets[s.ID]
	if !ok {
		if s.Optional {
			return false, nil
		}
		return false, missingSecret(s.ID)
	}
	mnt.Content, mnt.Mode, mnt.UID, mnt.GID, mnt.Readonly = v, s.Mode&0o777, s.Uid, s.Gid, true
	if mnt.Content == nil {
		mnt.Content = []byte{}
	}
	return true, nil
}

// results commits every output before it makes results of them: nobody would release those of a run that fails.
func (r *execRun) results() ([]solver.Result, error) {
	var snaps []*snapshot.Snapshot
	for i, o := range r.outputs {
		snap := o.snap
		if o.draft != nil {
			r.outputs[i].draft = nil
			var err error
			if snap, err = o.draft.Commit(r.ctx, r.e.name, r.e.o.Now()); err != nil {
				return nil, err
			}
		}
		snaps = append(snaps, snap)
	}
	var out []solver.Result
	for _, snap := range snaps {
		out = append(out, r.e.o.Store.NewResult(snap, r.e.name))
	}
	return out, nil
}
