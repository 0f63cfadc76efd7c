package op

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// vertex is one operation of a definition.
type vertex struct {
	op      *pb.Op
	options solver.VertexOptions
	inputs  []solver.Edge
	digest  digest.Digest
	name    string
}

func (v *vertex) Digest() digest.Digest         { return v.digest }
func (v *vertex) Sys() any                      { return v.op }
func (v *vertex) Options() solver.VertexOptions { return v.options }
func (v *vertex) Inputs() []solver.Edge         { return v.inputs }
func (v *vertex) Name() string {
	if name := v.options.Description["llb.customname"]; name != "" {
		return name
	}
	return v.name
}

// Load turns a definition into vertices and returns the edge that is its result. The
// definition must not be empty.
func Load(def *pb.Definition) (solver.Edge, error) {
	l := &loader{def: def, ops: map[digest.Digest]*pb.Op{}, done: map[digest.Digest]*vertex{}}
	last, err := l.unmarshal()
	if err != nil {
		return solver.Edge{}, err
	}
	// The last operation only names the result: it has one input and does nothing.
	if len(last.Inputs) == 0 {
		return solver.Edge{}, errors.New("definition has no result")
	}
	in := last.Inputs[0]
	v, err := l.vertex(digest.Digest(in.Digest), 0)
	if err != nil {
		return solver.Edge{}, err
	}
	return solver.Edge{Vertex: v, Index: solver.Index(in.Index)}, nil
}

type loader struct {
	def  *pb.Definition
	ops  map[digest.Digest]*pb.Op
	done map[digest.Digest]*vertex
}

func (l *loader) unmarshal() (*pb.Op, error) {
	var last *pb.Op
	for _, data := range l.def.Def {
		op := &pb.Op{}
		if err := op.Unmarshal(data); err != nil {
			return nil, fmt.Errorf("read build definition: %w", err)
		}
		for _, in := range op.Inputs {
			if in.Index < 0 {
				return nil, fmt.Errorf("read build definition: negative output %d", in.Index)
			}
		}
		l.ops[digest.FromBytes(data)] = op
		last = op
	}
	if last == nil {
		return nil, errors.New("read build definition: it is empty")
	}
	return last, nil
}

// maxDepth bounds recursion over a definition from elsewhere.
const maxDepth = 10_000

func (l *loader) vertex(dgst digest.Digest, depth int) (*vertex, error) {
	if v, ok := l.done[dgst]; ok {
		return v, nil
	}
	op, ok := l.ops[dgst]
	if !ok {
		return nil, fmt.Errorf("read build definition: input %s is missing", dgst)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("read build definition: deeper than %d operations", maxDepth)
	}
	if err := check(op); err != nil {
		return nil, fmt.Errorf("read build definition: %w", err)
	}
	platform(op)
	v := &vertex{op: op, digest: dgst, name: name(op), options: options(l.def.Metadata[string(dgst)])}
	for _, in := range op.Inputs {
		sub, err := l.vertex(digest.Digest(in.Digest), depth+1)
		if err != nil {
			return nil, err
		}
		v.inputs = append(v.inputs, solver.Edge{Index: solver.Index(in.Index), Vertex: sub})
	}
	l.done[dgst] = v
	return v, nil
}

func options(md *pb.OpMetadata) solver.VertexOptions {
	if md == nil {
		return solver.VertexOptions{}
	}
	o := solver.VertexOptions{IgnoreCache: md.IgnoreCache, Description: md.Description, ProgressGroup: md.ProgressGroup}
	if md.LinuxResources != nil {
		o.Metadata = limits{md.LinuxResources}
	}
	if md.ExportCache != nil {
		o.ExportCache = &md.ExportCache.Value
	}
	return o
}

// limits travel with a vertex without being part of it.
type limits struct{ *pb.LinuxResources }

// Merge implements solver.VertexMetadata: of two builds that share a vertex, the one that
// came first decides.
func (l limits) Merge(solver.VertexMetadata) solver.VertexMetadata { return l }

// platform normalises the operation's platform, which is part of cache keys.
func platform(op *pb.Op) {
	p := platforms.DefaultSpec()
	if op.Platform != nil {
		p.OS, p.Architecture, p.Variant = op.Platform.OS, op.Platform.Architecture, op.Platform.Variant
		p.OSVersion, p.OSFeatures = op.Platform.OSVersion, op.Platform.OSFeatures
	}
	p = platforms.Normalize(p)
	op.Platform = &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

func check(op *pb.Op) error {
	inputs := len(op.Inputs)
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		if o.Source == nil || inputs != 0 {
			return errors.New("source operation is malformed")
		}
	case *pb.Op_Exec:
		return checkExec(o.Exec, inputs)
	case *pb.Op_File:
		if o.File == nil || len(o.File.Actions) == 0 {
			return errors.New("file operation has no actions")
		}
	case *pb.Op_Merge, *pb.Op_Diff, *pb.Op_Build:
		return fmt.Errorf("operation %T is not supported", op.Op)
	default:
		return fmt.Errorf("unknown operation %T", op.Op)
	}
	return nil
}

func checkExec(e *pb.ExecOp, inputs int) error {
	if e == nil || e.Meta == nil || len(e.Meta.Args) == 0 {
		return errors.New("exec operation has no command")
	}
	root := false
	for _, m := range e.Mounts {
		root = root || m.Dest == pb.RootMount
		if m.Input != int64(pb.Empty) && (m.Input < 0 || m.Input >= int64(inputs)) {
			return fmt.Errorf("exec operation mounts input %d of %d", m.Input, inputs)
		}
	}
	if !root {
		return errors.New("exec operation has no root file system")
	}
	return nil
}

func name(op *pb.Op) string {
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return o.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(o.Exec.Meta.Args, " ")
	case *pb.Op_File:
		return fileName(o.File.Actions)
	}
	return "unknown"
}

func fileName(actions []*pb.FileAction) string {
	var names []string
	for _, action := range actions {
		switch a := action.Action.(type) {
		case *pb.FileAction_Mkdir:
			names = append(names, "mkdir "+a.Mkdir.Path)
		case *pb.FileAction_Mkfile:
			names = append(names, "mkfile "+a.Mkfile.Path)
		case *pb.FileAction_Symlink:
			names = append(names, "symlink "+a.Symlink.Newpath+" -> "+a.Symlink.Oldpath)
		case *pb.FileAction_Rm:
			names = append(names, "rm "+a.Rm.Path)
		case *pb.FileAction_Copy:
			names = append(names, "copy "+path.Clean(a.Copy.Src)+" "+a.Copy.Dest)
		}
	}
	return strings.Join(names, ", ")
}
