package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func (c *cli) logsCommand() *cobra.Command {
	var follow, timestamps, details bool
	var since, until, tail string
	cmd := &cobra.Command{
		Use: "logs CONTAINER", Short: "Show what a container printed (in a Compose project: or services)", GroupID: groupContainers,
		Example: `  slipway logs -f --tail 20 web
  slipway logs --since 10m -t web`,
		Args: exactly(1, "a container"), ValidArgsFunction: c.completeContainers(false, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
			for name, on := range map[string]bool{"follow": follow, "timestamps": timestamps, "details": details} {
				if on {
					q.Set(name, "1")
				}
			}
			for name, value := range map[string]string{"since": since, "until": until} {
				if value == "" {
					continue
				}
				t, err := moment(value, time.Now())
				if err != nil {
					return usageError{fmt.Errorf("--%s: %w", name, err)}
				}
				q.Set(name, t)
			}
			return c.copyLogs(cmd.Context(), args[0], q)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what it prints from now on")
	cmd.Flags().BoolVarP(&timestamps, "timestamps", "t", false, "show when each line was printed")
	cmd.Flags().BoolVar(&details, "details", false, "show extra details")
	cmd.Flags().StringVar(&since, "since", "", "only since a `TIME`, or for a duration such as 10m")
	cmd.Flags().StringVar(&until, "until", "", "only until a `TIME`")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "only the last `N` lines")
	_ = cmd.Flags().MarkHidden("details")
	return cmd
}

func (c *cli) copyLogs(ctx context.Context, name string, q url.Values) error {
	info, err := c.inspectContainer(ctx, name)
	if err != nil {
		return err
	}
	resp, err := c.client.do(ctx, call{method: "GET", path: "/containers/" + info.ID + "/logs", query: q})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if info.Config.Tty {
		_, err = io.Copy(c.out, resp.Body)
	} else {
		err = unframe(c.out, c.err, resp.Body)
	}
	if ctx.Err() != nil {
		return nil // interrupted while following
	}
	return err
}

// moment turns a duration before now, or a date, into what the API reads.
func moment(s string, now time.Time) (string, error) {
	if d, err := time.ParseDuration(s); err == nil {
		t := now.Add(-d)
		return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
		}
	}
	if strings.Trim(s, "0123456789.") == "" {
		return s, nil
	}
	return "", fmt.Errorf("%q is neither a time such as 2026-01-02T15:04:05 nor a duration such as 10m", s)
}

func (c *cli) topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [PS OPTIONS]", Short: "Show the processes of a container", GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(true, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if len(args) > 1 {
				q.Set("ps_args", strings.Join(args[1:], " "))
			}
			var table container.TopResponse
			if err := c.client.get(cmd.Context(), containerPath(args[0], "/top"), q, &table); err != nil {
				return err
			}
			l := &listing{raw: table}
			for _, title := range table.Titles {
				l.columns = append(l.columns, column{name: title, title: title})
			}
			for _, p := range table.Processes {
				l.add("", p...)
			}
			return l.print(c.out, outputFlags{})
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}
