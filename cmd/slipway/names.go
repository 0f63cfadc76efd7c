package main

import (
	"fmt"
	"strings"
)

// imageName is a reference as people write it, taken apart. The daemon judges whether it is a good one: checking here too would
// cost a tenth of this command's start-up in compiled regular expressions.
type imageName struct {
	repo   string // as written: "web", "localhost:5000/team/web"
	tag    string // empty: none
	digest string // empty: none
}

func parseImage(s string) (imageName, error) {
	var n imageName
	rest, digest, _ := strings.Cut(s, "@")
	n.repo, n.digest = rest, digest
	if colon := strings.LastIndexByte(rest, ':'); colon > strings.LastIndexByte(rest, '/') {
		n.repo, n.tag = rest[:colon], rest[colon+1:]
		if n.tag == "" {
			return n, usageError{fmt.Errorf("image %q: the tag after the colon is missing", s)}
		}
	}
	if n.repo == "" {
		return n, usageError{fmt.Errorf("image %q: the name is missing", s)}
	}
	return n, nil
}

// version is what comes after the name: a digest, or a tag, which is latest if there is none.
func (n imageName) version() string {
	switch {
	case n.digest != "":
		return n.digest
	case n.tag != "":
		return n.tag
	}
	return "latest"
}

// registry is the name under which credentials are kept.
func (n imageName) registry() string {
	first, _, several := strings.Cut(n.repo, "/")
	if !several || !strings.ContainsAny(first, ".:") && first != "localhost" || first == "docker.io" || first == "index.docker.io" {
		return hub
	}
	return first
}

func (n imageName) String() string {
	s := n.repo
	if n.digest == "" || n.tag != "" {
		s += ":" + imageName{tag: n.tag}.version()
	}
	if n.digest != "" {
		s += "@" + n.digest
	}
	return s
}

// splitTag takes the name of a new image apart.
func splitTag(name string) (repo, tag string, err error) {
	n, err := parseImage(name)
	if err != nil {
		return "", "", err
	}
	if n.digest != "" {
		return "", "", usageError{fmt.Errorf("image %q: want a tag, not a digest", name)}
	}
	return n.repo, n.version(), nil
}
