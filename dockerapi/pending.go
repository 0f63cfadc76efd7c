package dockerapi

import "slipway.dev/slipway/engine/build"

type classicBuild struct{ build.Progress }

func newClassicBuild(out *progress, quiet bool) *classicBuild { return &classicBuild{} }
func (*classicBuild) done(r *build.Result, tags []string)     {}
