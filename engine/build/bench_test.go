package build_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"testing"

	"slipway.dev/slipway/engine/build"
)

// BenchmarkUnchanged is a rebuild in which nothing has changed, context included.
func BenchmarkUnchanged(b *testing.B) {
	x := newBase(b)
	f := files{"Dockerfile": "FROM base AS one\nRUN echo 1 > /1\nFROM base\nCOPY . /src\nCOPY --from=one /1 /\nRUN cat /1\nCMD [\"sh\"]\n"}
	for i := range 50 {
		f[fmt.Sprintf("dir/%d", i)] = random(4 << 10)
	}
	data := f.tar()
	req := build.Request{Tags: []string{"app"}}
	build := func() {
		req.Context = bytes.NewReader(data)
		if _, err := x.b.Build(context.Background(), req, nil); err != nil {
			b.Fatal(err)
		}
	}
	build()
	for b.Loop() {
		build()
	}
}

// BenchmarkThreeStages builds three stages over a context of 10 MB without any cache.
func BenchmarkThreeStages(b *testing.B) {
	x := newBase(b)
	f := files{"Dockerfile": `FROM base AS one
COPY . /src
RUN cat /src/dir/* | md5sum > /1
FROM base AS two
COPY . /src
RUN ls /src/dir | wc -l > /2
FROM base
COPY --from=one /1 /
COPY --from=two /2 /
COPY --from=one /src /src
`}
	for i := range 100 {
		f[fmt.Sprintf("dir/%d", i)] = random(100 << 10)
	}
	for b.Loop() {
		b.StopTimer()
		f["dir/0"] = random(100 << 10)
		data := f.tar()
		b.StartTimer()
		req := build.Request{Context: bytes.NewReader(data), NoCache: true, Tags: []string{"app"}}
		if _, err := x.b.Build(context.Background(), req, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func random(n int) string {
	data := make([]byte, n)
	_, _ = rand.Read(data)
	return string(data)
}
