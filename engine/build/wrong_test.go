package build_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slipway.dev/slipway/engine/build"
)

// TestWrongDockerfiles checks what a person reads when something is wrong: the whole
// message, the place included.
func TestWrongDockerfiles(t *testing.T) {
	x := newBase(t)
	got := golden{TB: t, file: "testdata/wrong.golden"}
	for _, tt := range []struct {
		name, dockerfile string
		files            files
		change           func(*build.Request)
	}{
		{name: "empty", dockerfile: ""},
		{name: "only comments", dockerfile: "# nothing\n"},
		{name: "unknown instruction", dockerfile: "FROM base\nRUNN x\n"},
		{name: "no from", dockerfile: "COPY a /\n"},
		{name: "from without name", dockerfile: "FROM\n"},
		{name: "from with junk", dockerfile: "FROM base x y z\n"},
		{name: "bad image name", dockerfile: "FROM UPPER:case\n"},
		{name: "absent image", dockerfile: "FROM localhost:1/absent\n"},
		{name: "absent file", dockerfile: "FROM base\nRUN true\nCOPY nope /\n"},
		{name: "ignored file", dockerfile: "FROM base\nCOPY a /\n", files: files{"a": "1", ".dockerignore": "a\n"}},
		{name: "absent in a stage", dockerfile: "FROM base AS one\nFROM base\nCOPY --from=one /nope /\n"},
		{name: "absent stage", dockerfile: "FROM base\nCOPY --from=localhost:1/nostage /a /\n"},
		{name: "copy without destination", dockerfile: "FROM base\nCOPY a\n"},
		{name: "unknown flag", dockerfile: "FROM base\nCOPY --form=one a /\n"},
		{name: "bad chmod", dockerfile: "FROM base\nCOPY --chmod=rwx a /\n", files: files{"a": "1"}},
		{name: "unknown owner", dockerfile: "FROM base\nCOPY --chown=nobodyhere a /\n", files: files{"a": "1"}},
		{name: "file as a directory", dockerfile: "FROM base\nCOPY a /etc/passwd/x\n", files: files{"a": "1"}},
		{name: "failing command", dockerfile: "FROM base\nRUN echo so far && exit 7\n"},
		{name: "absent command", dockerfile: "FROM base\nRUN [\"/nope\"]\n"},
		{name: "unknown user", dockerfile: "FROM base\nUSER nobodyhere\nRUN true\n"},
		{name: "secret not given", dockerfile: "FROM base\nRUN --mount=type=secret,id=s,required true\n"},
		{name: "ssh not given", dockerfile: "FROM base\nRUN --mount=type=ssh,required true\n"},
		{name: "bad mount type", dockerfile: "FROM base\nRUN --mount=type=nope true\n"},
		{name: "mount without target", dockerfile: "FROM base\nRUN --mount=type=bind true\n"},
		{name: "mount of what is not there", dockerfile: "FROM base\nRUN --mount=source=nope,target=/x true\n"},
		{name: "bad network", dockerfile: "FROM base\nRUN --network=nope true\n"},
		{name: "insecure", dockerfile: "FROM base\nRUN --security=insecure true\n"},
		{name: "unterminated heredoc", dockerfile: "FROM base\nRUN <<EOF\necho\n"},
		{name: "env without value", dockerfile: "FROM base\nENV\n"},
		{name: "label without value", dockerfile: "FROM base\nLABEL a\n"},
		{name: "bad expansion", dockerfile: "FROM base\nENV A=${B\n"},
		{name: "required variable", dockerfile: "FROM base\nENV A=${B:?not set}\n"},
		{name: "bad port", dockerfile: "FROM base\nEXPOSE eighty\n"},
		{name: "bad shell", dockerfile: "FROM base\nSHELL /bin/sh\n"},
		{name: "bad healthcheck", dockerfile: "FROM base\nHEALTHCHECK --interval=x CMD a\n"},
		{name: "onbuild onbuild", dockerfile: "FROM base\nONBUILD ONBUILD RUN x\n"},
		{name: "circle", dockerfile: "FROM base AS a\nCOPY --from=b /x /\nFROM base AS b\nCOPY --from=a /y /\n"},
		{name: "absent target", dockerfile: "FROM base AS a\n", change: func(r *build.Request) { r.Target = "b" }},
		{name: "absent dockerfile", dockerfile: "FROM base\n", change: func(r *build.Request) { r.Dockerfile = "Other" }},
		{name: "dockerfile that is a directory", dockerfile: "FROM base\n", files: files{"d/": ""}, change: func(r *build.Request) { r.Dockerfile = "d" }},
		{name: "dockerfile that is a link to the outside", dockerfile: "FROM base\n", files: files{"l -> /etc/shadow": ""}, change: func(r *build.Request) { r.Dockerfile = "l" }},
		{name: "git", dockerfile: "FROM base\nADD https://example.com/x.git /x\n"},
		{name: "unreachable url", dockerfile: "FROM base\nADD http://127.0.0.1:1/x /x\n"},
		{name: "other front end", dockerfile: "# syntax=example/lang:1\nFROM base\n"},
		{name: "bad tag", dockerfile: "FROM base\n", change: func(r *build.Request) { r.Tags = []string{"Not Valid"} }},
		{name: "other platform", dockerfile: "FROM base\n", change: func(r *build.Request) { r.Platform = "linux/s390x" }},
		{name: "unknown network", dockerfile: "FROM base\n", change: func(r *build.Request) { r.Network = "mine" }},
		{name: "hostile context", dockerfile: "FROM base\n", files: files{"../../out": "x"}},
		{name: "hostile archive", dockerfile: "FROM base\nADD t.tar /\n", files: files{"t.tar": string(files{"../out": "x"}.tar())}},
		{name: "bad add-host", dockerfile: "FROM base\n", change: func(r *build.Request) { r.ExtraHosts = []string{"x:notanaddress"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := files{"Dockerfile": tt.dockerfile}
			for k, v := range tt.files {
				f[k] = v
			}
			req := request(f)
			req.Tags = []string{"wrong"}
			if tt.change != nil {
				tt.change(&req)
			}
			_, _, err := x.build(req)
			if err == nil {
				t.Fatal("the build succeeded")
			}
			got.add(tt.name, err)
			if _, err := x.images.Get(context.Background(), "wrong"); err == nil {
				t.Error("a failed build left a name")
			}
		})
	}
	got.check()
}

var update = flag.Bool("update", false, "write golden files anew")

// golden compares messages, a section each, with a file that people review.
type golden struct {
	testing.TB
	file string
	text strings.Builder
}

func (g *golden) add(name string, err error) {
	where := ""
	var be *build.Error
	if errors.As(err, &be) && be.Line > 0 {
		where = fmt.Sprintf(" (%s:%d)", be.File, be.Line)
	}
	fmt.Fprintf(&g.text, "== %s%s\n%s\n", name, where, err)
}

func (g *golden) check() {
	g.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(g.file), 0o755); err != nil {
			g.Fatal(err)
		}
		if err := os.WriteFile(g.file, []byte(g.text.String()), 0o644); err != nil {
			g.Fatal(err)
		}
	}
	want, err := os.ReadFile(g.file)
	if err != nil {
		g.Fatal(err)
	}
	if diff := cmp.Diff(string(want), g.text.String()); diff != "" {
		g.Errorf("messages differ from %s (-want +got; -update accepts them):\n%s", g.file, diff)
	}
}
