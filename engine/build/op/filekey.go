package op

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/snapshot"
)

const fileCacheType = "buildkit.file.v0"

// newCacheMap returns a map with one dependency per input.
func newCacheMap(dgst digest.Digest, inputs int) *solver.CacheMap {
	m := &solver.CacheMap{Digest: dgst}
	m.Deps = make([]struct {
		Selector          digest.Digest
		ComputeDigestFunc solver.ResultBasedCacheFunc
		PreprocessFunc    solver.PreprocessFunc
	}, inputs)
	return m
}

// CacheMap implements solver.Op. The digest and the selectors are those of BuildKit's
// llbsolver/ops/file.go.
func (f *File) CacheMap(context.Context, solver.JobContext, int) (*solver.CacheMap, bool, error) {
	k := fileKey{inputs: f.inputs, selectors: map[int][]Selector{}, whole: map[int]bool{}}
	actions := make([][]byte, 0, len(f.op.Actions))
	indexes := make([][]int, 0, len(f.op.Actions))
	for _, action := range f.op.Actions {
		data, err := k.action(action)
		if err != nil {
			return nil, false, err
		}
		actions = append(actions, data)
		indexes = append(indexes, []int{int(action.Input), int(action.SecondaryInput), int(action.Output)})
	}
	if isDefaultIndexes(indexes) {
		indexes = nil
	}
	data, err := json.Marshal(struct {
		Type    string
		Actions [][]byte
		Indexes [][]int `json:"indexes,omitempty"`
	}{fileCacheType, actions, indexes})
	if err != nil {
		return nil, false, err
	}
	m := newCacheMap(digest.FromBytes(data), f.inputs)
	for i, selectors := range k.selectors {
		if i < 0 || i >= f.inputs {
			return nil, false, fmt.Errorf("file operation reads input %d of %d", i, f.inputs)
		}
		if k.whole[i] {
			continue
		}
		m.Deps[i].Selector = selectorKey(selectors)
		m.Deps[i].ComputeDigestFunc = contentKey(f.store, dedupeSelectors(selectors))
	}
	return m, true, nil
}

// fileKey gathers what a file operation reads from its inputs.
type fileKey struct {
	inputs    int
	selectors map[int][]Selector
	whole     map[int]bool // inputs that are written on: all of their content matters
}

func (k *fileKey) action(action *pb.FileAction) ([]byte, error) {
	if action.Input != -1 {
		k.whole[int(action.Input)] = true
	}
	switch a := action.Action.(type) {
	case *pb.FileAction_Mkdir:
		return k.owned(a.Mkdir, a.Mkdir.Owner)
	case *pb.FileAction_Mkfile:
		return k.owned(a.Mkfile, a.Mkfile.Owner)
	case *pb.FileAction_Symlink:
		return k.owned(a.Symlink, a.Symlink.Owner)
	case *pb.FileAction_Rm:
		return json.Marshal(a.Rm)
	case *pb.FileAction_Copy:
		c := a.Copy.CloneVT()
		if action.SecondaryInput != -1 && int(action.SecondaryInput) < k.inputs {
			k.add(int(action.SecondaryInput), Selector{
				Path: c.Src, FollowLinks: c.FollowSymlink, Wildcard: c.AllowWildcard && hasWildcards(c.Src),
				Include: c.IncludePatterns, Exclude: c.ExcludePatterns, AllowEmpty: c.AllowEmptyWildcard,
			})
			c.Src = path.Base(c.Src)
		}
		return k.owned(c, c.Owner)
	}
	return nil, fmt.Errorf("unknown file action %T", action.Action)
}

func (k *fileKey) owned(action any, owner *pb.ChownOpt) ([]byte, error) {
	if owner != nil {
		if err := k.named(owner.User, "/etc/passwd"); err != nil {
			return nil, err
		}
		if err := k.named(owner.Group, "/etc/group"); err != nil {
			return nil, err
		}
	}
	return json.Marshal(action)
}

// named adds the file that a user or group name is looked up in.
func (k *fileKey) named(u *pb.UserOpt, file string) error {
	if u == nil {
		return nil
	}
	by, ok := u.User.(*pb.UserOpt_ByName)
	if !ok {
		return nil
	}
	if by.ByName == nil || by.ByName.Input < 0 {
		return errors.New("file operation names an owner without a file system to look it up in")
	}
	k.add(int(by.ByName.Input), Selector{Path: file, FollowLinks: true, Optional: true})
	return nil
}

func (k *fileKey) add(input int, s Selector) { k.selectors[input] = append(k.selectors[input], s) }

func selectorKey(selectors []Selector) digest.Digest {
	paths := make([][]byte, 0, len(selectors))
	for _, s := range selectors {
		paths = append(paths, []byte(s.Path))
	}
	slices.SortFunc(paths, bytes.Compare)
	slices.Reverse(paths) // as BuildKit does, "for historical reasons"
	return digest.FromBytes(bytes.Join(paths, []byte{0}))
}

// contentKey computes a cache key from what the selected files hold.
func contentKey(store *snapshot.Store, selectors []Selector) solver.ResultBasedCacheFunc {
	return func(ctx context.Context, res solver.Result, _ session.Group) (digest.Digest, error) {
		snap, err := snapshot.Of(res)
		if err != nil {
			return "", err
		}
		t, release, err := openTree(ctx, store, snap)
		if err != nil {
			return "", err
		}
		defer release()
		if len(selectors) == 0 {
			selectors = []Selector{{}}
		}
		sums := make([][]byte, len(selectors))
		for i, s := range selectors {
			sum, err := Checksum(ctx, t, s)
			if err != nil {
				return "", err
			}
			sums[i] = []byte(sum)
		}
		return digest.FromBytes(bytes.Join(sums, []byte{0})), nil
	}
}

func hasWildcards(name string) bool {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// dedupeSelectors drops paths that lie below others and sorts the rest.
func dedupeSelectors(in []Selector) []Selector {
	var plain, follow []string
	var out []Selector
	optional := map[string]bool{}
	for _, s := range in {
		switch {
		case s.filtered():
			out = append(out, s)
		case s.FollowLinks:
			follow = append(follow, s.Path)
			optional[s.Path] = s.Optional
		default:
			plain = append(plain, s.Path)
		}
	}
	for _, p := range dedupePaths(plain) {
		out = append(out, Selector{Path: p})
	}
	for _, p := range dedupePaths(follow) {
		out = append(out, Selector{Path: p, FollowLinks: true, Optional: optional[p]})
	}
	slices.SortStableFunc(out, func(a, b Selector) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func dedupePaths(in []string) []string {
	if len(in) < 2 {
		return in
	}
	in = slices.Clone(in)
	slices.Sort(in)
	in = slices.Compact(in)
	var out []string
	for _, p := range in {
		below := slices.ContainsFunc(in, func(q string) bool {
			return p != q && strings.HasPrefix(p, strings.TrimSuffix(q, "/")+"/")
		})
		if !below {
			out = append(out, p)
		}
	}
	return out
}

// isDefaultIndexes recognises the common chain of actions, whose indexes BuildKit leaves
// out of the digest.
func isDefaultIndexes(all [][]int) bool {
	for i, x := range all {
		switch {
		case i == 0 && x[0] != 0,
			i != 0 && x[0] != len(all)+(i-1),
			x[1] != -1 && x[1] != 1,
			i == len(all)-1 && x[2] != 0,
			i != len(all)-1 && x[2] != -1:
			return false
		}
	}
	return len(all) > 0
}
