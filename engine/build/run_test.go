package build_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/build/run"
	"slipway.dev/slipway/engine/warden"
	"slipway.dev/slipway/engine/warden/wardentest"
)

// newBase returns a bench with an image "base" that can run programs.
func newBase(t testing.TB) *bench {
	t.Helper()
	x := newBench(t, withRunner(t))
	req := request(files{
		"Dockerfile":   "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nCOPY etc /etc\nRUN mkdir -p -m 1777 /tmp\n",
		"busybox*0755": busyboxOnce(),
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n",
		"etc/group":    "root:x:0:\nstaff:x:50:app\napp:x:1001:\n",
	})
	req.Tags = []string{"base"}
	x.mustBuild(req)
	return x
}

// lossyWarden makes sandboxes and loses the answers.
type lossyWarden struct{ run.Warden }

func (w lossyWarden) CreateSandbox(ctx context.Context, spec warden.SandboxSpec) (*os.File, error) {
	return wardentest.Lose(w.Warden.CreateSandbox(ctx, spec))
}

// A namespace that was made without anybody hearing of it goes like any other: withRunner looks for what is left.
func TestAnswerOfTheWardenLost(t *testing.T) {
	x := newBench(t, withRunner(t, func(o *run.Options) { o.Warden = lossyWarden{o.Warden} }))
	_, _, err := x.build(request(files{"Dockerfile": "FROM scratch\nCOPY busybox /\nRUN [\"/busybox\", \"true\"]\n", "busybox*0755": busyboxOnce()}))
	if !errdefs.IsUnavailable(err) {
		t.Errorf("a step without an answer of the warden: %v", err)
	}
}

func TestRun(t *testing.T) {
	x := newBase(t)
	for _, tt := range []struct {
		name, dockerfile string
		files            files
		change           func(*build.Request)
		want             []string // parts of the output of the build
		holds            []string // lines of the listing
		lacks            []string // beginnings of lines that must not be there
	}{
		{name: "shell", dockerfile: "FROM base\nRUN echo a b > /out && echo said\n", want: []string{"said\n"}, holds: []string{"/out -rw-r--r-- a b"}},
		{name: "exec form", dockerfile: "FROM base\nRUN [\"/bin/sh\", \"-c\", \"echo $0 > /out\", \"x\"]\n", holds: []string{"/out -rw-r--r-- x"}},
		{name: "heredoc", dockerfile: "FROM base\nRUN <<EOF\nset -e\necho one > /out\necho two >> /out\nEOF\n", holds: []string{"/out -rw-r--r-- one\ntwo"}},
		{name: "env and arg", dockerfile: "FROM base\nARG A=1\nENV B=${A}2\nRUN echo $A $B > /out\n", holds: []string{"/out -rw-r--r-- 1 12"}},
		{name: "build arg", dockerfile: "FROM base\nARG A=1\nRUN echo $A > /out\n", change: func(r *build.Request) { r.BuildArgs = map[string]string{"A": "9"} }, holds: []string{"/out -rw-r--r-- 9"}},
		{name: "workdir", dockerfile: "FROM base\nWORKDIR /a\nWORKDIR b\nRUN pwd > out\n", holds: []string{"/a/b/out -rw-r--r-- /a/b"}},
		{name: "user by name", dockerfile: "FROM base\nUSER app\nRUN id > /tmp/out\n", holds: []string{"/tmp/out -rw-r--r-- 1000:1001 uid=1000(app) gid=1001(app) groups=50(staff),1001(app)"}},
		{name: "user by number", dockerfile: "FROM base\nUSER 7:8\nRUN id -u > /tmp/out\n", holds: []string{"/tmp/out -rw-r--r-- 7:8 7"}},
		{name: "shell instruction", dockerfile: "FROM base\nSHELL [\"/bin/sh\", \"-ec\"]\nRUN false || echo $- > /out\n", holds: []string{"/out -rw-r--r-- ce"}},
		{name: "removal", dockerfile: "FROM base\nRUN touch /a /b\nRUN rm /a\n", holds: []string{"/b -rw-r--r-- "}, lacks: []string{"/a "}},
		{name: "no network", dockerfile: "FROM base\nRUN --network=none ip -o link | wc -l > /out\n", holds: []string{"/out -rw-r--r-- 1"}},
		{name: "default network", dockerfile: "FROM base\nRUN ip -4 -o addr show eth0 && cat /etc/resolv.conf && ping -c1 -W5 $(ip route | awk '/default/{print $3}') \n", want: []string{"nameserver 127.0.0.11", " 0% packet loss"}},
		{name: "host network", dockerfile: "FROM base\nRUN --network=host ip -o link | grep -c sw > /out\n", holds: nil, want: nil},
		{name: "tmpfs mount", dockerfile: "FROM base\nRUN --mount=type=tmpfs,target=/t echo x > /t/f && mount | grep -o 'on /t type tmpfs'\n", want: []string{"on /t type tmpfs"}, lacks: []string{"/t"[:2] + " "}},
		{name: "bind mount of the context", dockerfile: "FROM base\nRUN --mount=target=/src cat /src/f/g > /out\n", files: files{"f/g": "from context"}, holds: []string{"/out -rw-r--r-- from context"}, lacks: []string{"/src"}},
		{name: "bind mount of a part of the context", dockerfile: "FROM base\nRUN --mount=source=f,target=/src cat /src/g > /out\n", files: files{"f/g": "part"}, holds: []string{"/out -rw-r--r-- part"}},
		{name: "bind mount of a file", dockerfile: "FROM base\nRUN --mount=source=f/g,target=/etc/x cat /etc/x > /out\n", files: files{"f/g": "one file"}, holds: []string{"/out -rw-r--r-- one file"}, lacks: []string{"/etc/x"}},
		{name: "writable bind mount", dockerfile: "FROM base\nRUN --mount=target=/src,rw echo new > /src/f && cat /src/f > /out\nRUN --mount=target=/src cat /src/f >> /out\n", files: files{"f": "old\n"}, holds: []string{"/out -rw-r--r-- new\nold"}},
		{name: "bind mount of a stage", dockerfile: "FROM base AS a\nRUN mkdir -p /d/e && echo 1 > /d/e/f\nRUN echo 2 > /d/e/g\nFROM base\nRUN --mount=from=a,source=/d,target=/s cat /s/e/f /s/e/g > /out\n", holds: []string{"/out -rw-r--r-- 1\n2"}},
		{name: "writable bind mount of a stage", dockerfile: "FROM base AS a\nRUN mkdir /d && echo 1 > /d/f\nFROM base\nRUN --mount=from=a,source=/d,target=/s,rw echo 2 >> /s/f && cat /s/f > /out\n", holds: []string{"/out -rw-r--r-- 1\n2"}},
		{name: "cache mount", dockerfile: "FROM base\nRUN --mount=type=cache,target=/c echo kept > /c/f\nRUN --mount=type=cache,target=/c cat /c/f > /out\n", holds: []string{"/out -rw-r--r-- kept"}, lacks: []string{"/c"[:2] + "/"}},
		{name: "secret", dockerfile: "FROM base\nRUN --mount=type=secret,id=s cat /run/secrets/s | md5sum > /out; ls -l /run/secrets/s\n", change: func(r *build.Request) { r.Secrets = map[string][]byte{"s": []byte("hush")} }, want: []string{"-r--------"}, holds: []string{"/out -rw-r--r-- 588d39bce7c5fcae6a8529c3997387ea  -"}, lacks: []string{"/run/secrets/s"}},
		{name: "secret env", dockerfile: "FROM base\nRUN --mount=type=secret,id=s,env=S echo ${#S} > /out\n", change: func(r *build.Request) { r.Secrets = map[string][]byte{"s": []byte("hush")} }, holds: []string{"/out -rw-r--r-- 4"}},
		{name: "optional ssh", dockerfile: "FROM base\nRUN --mount=type=ssh echo fine > /out\n", holds: []string{"/out -rw-r--r-- fine"}},
		{name: "capabilities and seccomp", dockerfile: "FROM base\nRUN grep -E 'CapEff|Seccomp:' /proc/self/status\n", want: []string{"CapEff:\t00000000a80425fb", "Seccomp:\t2"}},
		{name: "extra host", dockerfile: "FROM base\nRUN grep extra /etc/hosts\n", change: func(r *build.Request) { r.ExtraHosts = []string{"extra:10.1.2.3"} }, want: []string{"10.1.2.3\textra"}},
		{name: "shm size", dockerfile: "FROM base\nRUN mount | grep /dev/shm\n", change: func(r *build.Request) { r.ShmSize = 8 << 20 }, want: []string{"size=8192k"}},
		{name: "ulimit", dockerfile: "FROM base\nRUN ulimit -n\n", change: func(r *build.Request) { r.Ulimits = []string{"nofile=77:99"} }, want: []string{"77\n"}},
		{name: "memory", dockerfile: "FROM base\nRUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true\n", change: func(r *build.Request) { r.Memory = 64 << 20 }, want: []string{"67108864"}},
		{name: "chown by name", dockerfile: "FROM base\nCOPY --chown=app:staff f /f\n", files: files{"f": "x"}, holds: []string{"/f -rw-r--r-- 1000:50 x"}},
		{name: "mount points leave nothing", dockerfile: "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"true\"]\n", files: files{"busybox*0755": busyboxOnce()}, holds: []string{"/dev drwxr-xr-x"}, lacks: []string{"/etc"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := files{"Dockerfile": tt.dockerfile}
			for k, v := range tt.files {
				f[k] = v
			}
			req := request(f)
			if tt.change != nil {
				tt.change(&req)
			}
			res, p, err := x.build(req)
			if err != nil {
				t.Fatalf("build: %v\noutput: %s", err, p.output.String())
			}
			for _, w := range tt.want {
				if !strings.Contains(p.output.String(), w) {
					t.Errorf("output is %q; want %q in it", p.output.String(), w)
				}
			}
			listing := "\n" + x.listing(res.Image)
			for _, h := range tt.holds {
				if !strings.Contains(listing, "\n"+h+"\n") && !strings.Contains(listing, "\n"+h) {
					t.Errorf("image holds\n%s; want %q", without(listing, "/bin/"), h)
				}
			}
			for _, l := range tt.lacks {
				if strings.Contains(listing, "\n"+l) {
					t.Errorf("image holds\n%s; want nothing at %q", without(listing, "/bin/"), l)
				}
			}
		})
	}
	if entries, err := x.b.Usage(context.Background()); err != nil || len(entries) == 0 {
		t.Errorf("Usage = %v, %v; want what was built", entries, err)
	}
}

// without drops the lines that begin with prefix.
func without(listing, prefix string) string {
	var out strings.Builder
	for line := range strings.Lines(listing) {
		if !strings.HasPrefix(line, prefix) {
			out.WriteString(line)
		}
	}
	return out.String()
}
