package op

import (
	"context"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// TestKeysAreBuildKits compares operation digests with those that BuildKit v0.34.2's own
// worker (solver/llbsolver/ops) computes for the same definitions: only equal ones let
// caches be exchanged.
func TestKeysAreBuildKits(t *testing.T) {
	base := llb.Image("docker.io/library/base:latest")
	src := llb.Local("context")
	for _, tt := range []struct {
		name  string
		state llb.State
		want  string   // the operation's digest
		deps  []string // per input: what is read of it, and "content" where it is keyed by that
	}{
		{"copy", base.File(llb.Copy(src, "/a/b", "/c/", &llb.CopyInfo{CreateDestPath: true, AllowWildcard: true, FollowSymlinks: true})), "96099e781ae655dda1fb513c27dad7675b3bf42473abacb8426c860aa85d691e", []string{"", "662b7b62a798bb2d content"}},
		{"copy with owner", base.File(llb.Copy(src, "/a", "/c", llb.WithUser("app:staff"))), "d74745ee5386af647de7c8077b46c2a0ba55a264bf3a482c720daa4d0929778c", []string{"", "6a50dc8584134c7d content"}},
		{"copy with patterns", base.File(llb.Copy(src, "/", "/c", &llb.CopyInfo{ExcludePatterns: []string{"*.md"}})), "9f5b9bb9ec3896dd2fae8bd529c863856a1a45d4da73a6d9fe5c1533a5659a01", []string{"", "8a5edab282632443 content"}},
		{"mkdir", base.File(llb.Mkdir("/w", 0o755, llb.WithParents(true))), "9db5dc88869437365acb90a9b626b212b7102e65cfa699358bd0932ce258b729", []string{""}},
		{"several actions", base.File(llb.Mkfile("/f", 0o644, []byte("x")).Rm("/g", llb.WithAllowNotFound(true)).Copy(src, "/h", "/i")), "f7dfc0524e9b3c7fd4e8b315fade0aeb5f8979989aedeaf3807bebac68f3f362", []string{"", "141582aa3785bb7d content"}},
		{"run", base.Run(llb.Shlex("sh -c 'make all'"), llb.AddEnv("A", "b"), llb.Dir("/w")).Root(), "be33be52cebdc79b5bf67101cb750648334ad96ed264d612a88032f81b03bed7", []string{"8a5edab282632443"}},
		{"run with mounts", base.Run(llb.Args([]string{"make"}),
			llb.AddMount("/src", src, llb.Readonly, llb.SourcePath("sub")),
			llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir("id", llb.CacheMountLocked)),
			llb.AddMount("/tmp", llb.Scratch(), llb.Tmpfs()),
			llb.AddSecret("/run/secrets/s", llb.SecretID("s")),
			llb.AddExtraHost("h", []byte{10, 0, 0, 1})).Root(), "d772bf55d4b4bfb4c4b534d7fd03be6ccc3e7322de33cd33f1d9d1f7926cf179", []string{"8a5edab282632443", "c3edd766ba41f0cf content"}},
		{"run without network", base.Run(llb.Args([]string{"x"}), llb.Network(pb.NetMode_NONE)).Root(), "de5231cc235083b8cbe8e25d1c84fea914d2601f4d753bfe9f0443d67e1db679", []string{"8a5edab282632443"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			def, err := tt.state.Marshal(context.Background(), llb.LinuxAmd64)
			if err != nil {
				t.Fatal(err)
			}
			edge, err := Load(def.ToPB())
			if err != nil {
				t.Fatal(err)
			}
			o, err := Resolver(Options{})(edge.Vertex, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := o.CacheMap(context.Background(), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest.Encoded() != tt.want {
				t.Errorf("digest is %s; BuildKit's is %s", got.Digest.Encoded(), tt.want)
			}
			for i, d := range got.Deps {
				dep := short(d.Selector)
				if d.ComputeDigestFunc != nil {
					dep += " content"
				}
				if dep != tt.deps[i] {
					t.Errorf("input %d is read as %q; BuildKit reads it as %q", i, dep, tt.deps[i])
				}
			}
		})
	}
}

func short(d digest.Digest) string {
	if d == "" {
		return ""
	}
	return d.Encoded()[:16]
}
