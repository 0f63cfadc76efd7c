package progress

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/opencontainers/go-digest"
)

// plan lists the instructions that a target needs, in the order of the Dockerfile. It is
// for show only: a Dockerfile that it cannot make sense of gives no steps, and the front
// end's error tells why.
func plan(content []byte, target string) []*step {
	ast, err := parser.Parse(bytes.NewReader(content))
	if err != nil {
		return nil
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil || len(stages) == 0 {
		return nil
	}
	texts := texts(ast.AST)
	var steps []*step
	add := func(loc []parser.Range, kind step) {
		if len(loc) == 0 {
			return
		}
		kind.line = loc[0].Start.Line
		kind.text = texts[kind.line]
		kind.vertices = map[digest.Digest]*client.Vertex{}
		steps = append(steps, &kind)
	}
	for _, arg := range meta {
		add(arg.Location(), step{})
	}
	needed := needed(stages, target)
	for i, st := range stages {
		if !needed[i] {
			continue
		}
		add(st.Location, step{from: true})
		for _, cmd := range st.Commands {
			switch cmd.(type) {
			case *instructions.RunCommand:
				add(cmd.Location(), step{run: true, works: true})
			case *instructions.CopyCommand, *instructions.AddCommand:
				add(cmd.Location(), step{works: true})
			default:
				add(cmd.Location(), step{})
			}
		}
	}
	return steps
}

// texts is what each instruction says, by its first line, on one line.
func texts(root *parser.Node) map[int]string {
	out := map[int]string{}
	for _, n := range root.Children {
		out[n.StartLine] = strings.TrimSpace(strings.Join(strings.Fields(n.Original), " "))
	}
	return out
}

// needed marks the target and the stages that it is made of.
func needed(stages []instructions.Stage, target string) map[int]bool {
	at := len(stages) - 1
	if target != "" {
		if i, ok := instructions.HasStage(stages, target); ok {
			at = i
		}
	}
	out := map[int]bool{}
	mark(stages, at, out)
	return out
}

func mark(stages []instructions.Stage, i int, out map[int]bool) {
	if out[i] {
		return
	}
	out[i] = true
	follow := func(name string) {
		if j, ok := instructions.HasStage(stages[:i], name); ok {
			mark(stages, j, out)
		} else if j, err := strconv.Atoi(name); err == nil && j >= 0 && j < i {
			mark(stages, j, out)
		}
	}
	follow(stages[i].BaseName)
	for _, cmd := range stages[i].Commands {
		switch c := cmd.(type) {
		case *instructions.CopyCommand:
			follow(c.From)
		case *instructions.RunCommand:
			for _, m := range instructions.GetMounts(c) {
				follow(m.From)
			}
		}
	}
}
