package build_test

import (
	"bytes"
	"context"
	"regexp"
	"testing"

	"slipway.dev/slipway/engine/build/progress"
)

var anyID = regexp.MustCompile(`\b[0-9a-f]{12}\b`)

// classic builds with the classic progress and returns what it wrote, ids replaced.
func (x *bench) classic(f files, tags ...string) (string, error) {
	x.Helper()
	var out bytes.Buffer
	c := progress.NewClassic(&out)
	req := request(f)
	req.Tags = tags
	res, err := x.b.Build(context.Background(), req, c)
	if err != nil {
		if ferr := c.Fail(); ferr != nil {
			x.Error(ferr)
		}
	} else if ferr := c.Finish(res.ImageID, tags); ferr != nil {
		x.Error(ferr)
	}
	return anyID.ReplaceAllString(out.String(), "ID"), err
}

func TestClassicProgress(t *testing.T) {
	x := newBase(t)
	f := files{"Dockerfile": `ARG BASE=base
FROM $BASE AS one
RUN echo from one > /1
FROM base AS unused
RUN exit 1
FROM base
ENV A=b
COPY --from=one /1 /1
RUN echo hello \
    && echo again
CMD ["sh"]
`}
	const head = "Step 1/8 : ARG BASE=base\n ---> ID\n"
	want := head + `Step 2/8 : FROM $BASE AS one
 ---> ID
Step 3/8 : RUN echo from one > /1
 ---> Running in ID
 ---> ID
Step 4/8 : FROM base
 ---> ID
Step 5/8 : ENV A=b
 ---> ID
Step 6/8 : COPY --from=one /1 /1
 ---> ID
Step 7/8 : RUN echo hello && echo again
 ---> Running in ID
hello
again
 ---> ID
Step 8/8 : CMD ["sh"]
 ---> ID
Successfully built ID
Successfully tagged app:latest
`
	got, err := x.classic(f, "app:latest")
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("first build wrote\n%s\nwant\n%s", got, want)
	}
	want = head + `Step 2/8 : FROM $BASE AS one
 ---> ID
Step 3/8 : RUN echo from one > /1
 ---> Using cache
 ---> ID
Step 4/8 : FROM base
 ---> ID
Step 5/8 : ENV A=b
 ---> ID
Step 6/8 : COPY --from=one /1 /1
 ---> Using cache
 ---> ID
Step 7/8 : RUN echo hello && echo again
 ---> Using cache
 ---> ID
Step 8/8 : CMD ["sh"]
 ---> ID
Successfully built ID
Successfully tagged app:latest
`
	if got, err = x.classic(f, "app:latest"); err != nil || got != want {
		t.Errorf("second build wrote\n%s\nwant\n%s\n(%v)", got, want, err)
	}
	f["Dockerfile"] = "FROM base\nRUN echo no && false\nRUN never\n"
	want = `Step 1/3 : FROM base
 ---> ID
Step 2/3 : RUN echo no && false
 ---> Running in ID
no
`
	if got, err = x.classic(f); err == nil || got != want {
		t.Errorf("failing build wrote\n%s\nwant\n%s\n(%v)", got, want, err)
	}
}
