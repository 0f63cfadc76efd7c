package main

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"
)

// completionTime bounds how long a shell waits for names.
const completionTime = 500 * time.Millisecond

// ask gets v without starting a daemon: pressing tab changes nothing.
func (c *cli) ask(path string, q url.Values, v any) bool {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	return newClient(c.runDirectory(), nil).get(ctx, path, q, v) == nil
}

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeContainers offers names of containers, up to max operands; 0: any number.
func (c *cli) completeContainers(running bool, max int) completer {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if max > 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveDefault
		}
		q := url.Values{}
		if !running {
			q.Set("all", "1")
		}
		var list []container.Summary
		if !c.ask("/containers/json", q, &list) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, s := range list {
			for _, n := range s.Names {
				names = append(names, strings.TrimPrefix(n, "/")+"\t"+s.Image+", "+s.Status)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *cli) completeImages(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return c.imageNames(), cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) completeManyImages(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return c.imageNames(), cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) imageNames() []string {
	var list []image.Summary
	if !c.ask("/images/json", nil, &list) {
		return nil
	}
	var names []string
	for _, s := range list {
		names = append(names, s.RepoTags...)
	}
	return names
}

func (c *cli) completeNetworks(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var list []network.Summary
	if !c.ask("/networks", nil, &list) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) completeVolumes(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var list volume.ListResponse
	if !c.ask("/volumes", nil, &list) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range list.Volumes {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
