package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"slipway.dev/slipway/daemon/rundir"
)

// Some verbs are about one container, whoever made it: `slipway` has them for containers, and here the service's name becomes
// its containers' ids.

// topCommand shows the processes of services.
func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use: "top SERVICE", Short: "Show the processes of a replica of a service",
		Example: "  slipway top web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.becomeContainer(cmd.Context(), args[0], 0, func(id string) []string { return []string{"top", id} })
		},
	}
}

func (a *app) attachCommand() *cobra.Command {
	index := 0
	cmd := &cobra.Command{
		Use: "attach SERVICE", Short: "Connect to the standard streams of a replica of a service",
		Example: "  slipway -p shop attach web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.becomeContainer(cmd.Context(), args[0], index, func(id string) []string { return []string{"attach", id} })
		},
	}
	cmd.Flags().IntVar(&index, "index", 0, "which replica, from 1 (default: the first that runs)")
	return cmd
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait SERVICE", Short: "Wait until a replica of a service ends, and print its exit code",
		Example: "  slipway wait migrate",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.becomeContainer(cmd.Context(), args[0], 0, func(id string) []string { return []string{"wait", id} })
		},
	}
}

func (a *app) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use: "kill SERVICE", Short: "Send a signal to the replicas of a service; one that ends is started again",
		Example: "  slipway kill -s HUP proxy",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := a.containers(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.become(append([]string{"kill", "--signal", signal}, ids...))
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "which")
	return cmd
}

func (a *app) cpCommand() *cobra.Command {
	index := 0
	cmd := &cobra.Command{
		Use: "cp SERVICE:PATH PATH|- | cp PATH|- SERVICE:PATH", Short: "Copy files between a replica of a service and here",
		Example: "  slipway cp web:/etc/nginx/nginx.conf .\n  slipway cp seed.sql db:/tmp",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for i, arg := range args {
				service, path, found := strings.Cut(arg, ":")
				if !found || strings.Contains(service, "/") {
					continue
				}
				return a.becomeContainer(cmd.Context(), service, index, func(id string) []string {
					args[i] = id + ":" + path
					return append([]string{"cp"}, args...)
				})
			}
			return usageError{errors.New("one of the two paths must be a service's, such as web:/etc/hosts")}
		},
	}
	cmd.Flags().IntVar(&index, "index", 0, "which replica, from 1 (default: the first that runs)")
	return cmd
}

// containers are the ids of a service's running containers on this machine, by replica.
func (a *app) containers(ctx context.Context, service string) ([]string, error) {
	if a.kubeContext != "" {
		return nil, errors.New("this is about containers of this machine, not of another cluster: use kubectl there")
	}
	namespace, c, err := a.project(ctx, service)
	if err != nil {
		return nil, err
	}
	all, err := c.Replicas(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, r := range all {
		if r.Service == service && r.Container != "" && strings.HasPrefix(r.Status, "running") {
			ids = append(ids, r.Container)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("service %q is not running", service)
	}
	return ids, nil
}

// becomeContainer runs a verb about one container of a service: the index-th, from 1.
func (a *app) becomeContainer(ctx context.Context, service string, index int, args func(id string) []string) error {
	ids, err := a.containers(ctx, service)
	if err != nil {
		return err
	}
	if index > len(ids) {
		return fmt.Errorf("service %q has %d running replicas, not %d", service, len(ids), index)
	}
	return a.become(args(ids[max(index-1, 0)]))
}

// become replaces this process by `slipway`; it returns only with an error.
func (a *app) become(args []string) error {
	return rundir.Become("slipway", args, append(os.Environ(), "SLIPWAY_RUN_DIR="+a.runDirectory()))
}
