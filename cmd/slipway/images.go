package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"
)

func (c *cli) imageCommands(root *cobra.Command) {
	root.AddCommand(
		c.imagesCommand(), c.buildCommand(), c.pullCommand(), c.pushCommand(), c.tagCommand(), c.rmiCommand(),
		c.loadCommand(), c.saveCommand(), c.importCommand(), c.historyCommand(),
	)
}

func imagePath(name, verb string) string { return "/images/" + name + verb }

func (c *cli) imagesCommand() *cobra.Command {
	var (
		output                outputFlags
		all, noTrunc, digests bool
		filter                []string
	)
	cmd := &cobra.Command{
		Use: "images [NAME[:TAG]]", Short: "List images", GroupID: groupImages,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				filter = append(filter, "reference="+args[0])
			}
			filters, err := filterQuery(filter)
			if err != nil {
				return err
			}
			q := url.Values{}
			if filters != "" {
				q.Set("filters", filters)
			}
			if all {
				q.Set("all", "1")
			}
			var list []image.Summary
			if err := c.client.get(cmd.Context(), "/images/json", q, &list); err != nil {
				return err
			}
			return imageListing(list, time.Now(), !noTrunc, digests).print(c.out, output)
		},
	}
	output.register(cmd, "ids")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all images")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	cmd.Flags().BoolVar(&digests, "digests", false, "show what registries call them")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "`KEY=VALUE`: dangling, label, reference, before, since, until")
	return checked(cmd, &output)
}

func imageListing(list []image.Summary, now time.Time, short, digests bool) *listing {
	l := &listing{raw: list, columns: []column{
		{name: "Repository", title: "REPOSITORY"}, {name: "Tag", title: "TAG"}, {name: "Digest", title: "DIGEST", hidden: !digests},
		{name: "ID", title: "IMAGE ID"}, {name: "CreatedAt", title: "CREATED AT", hidden: true}, {name: "CreatedSince", title: "CREATED"},
		{name: "Size", title: "SIZE"},
	}}
	for _, s := range list {
		id := s.ID
		if short {
			id = shortID(id)
		}
		created := time.Unix(s.Created, 0)
		for _, name := range shownNames(s) {
			l.add(id, name[0], name[1], digestOf(s, name[0]), id, created.Format(time.RFC3339), ago(created, now), size(s.Size))
		}
	}
	return l
}

// shownNames are repository and tag of each of an image's lines.
func shownNames(s image.Summary) [][2]string {
	var names [][2]string
	for _, tag := range s.RepoTags {
		i := strings.LastIndexByte(tag, ':')
		names = append(names, [2]string{tag[:i], tag[i+1:]})
	}
	if len(names) > 0 {
		return names
	}
	for _, d := range s.RepoDigests {
		repo, _, _ := strings.Cut(d, "@")
		return [][2]string{{repo, "<none>"}}
	}
	return [][2]string{{"<none>", "<none>"}}
}

func digestOf(s image.Summary, repo string) string {
	for _, d := range s.RepoDigests {
		if name, digest, _ := strings.Cut(d, "@"); name == repo {
			return digest
		}
	}
	return "<none>"
}

func (c *cli) pullCommand() *cobra.Command {
	var platform string
	var quiet bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Fetch an image from a registry", GroupID: groupImages,
		Args: exactly(1, "an image"), ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.pull(cmd.Context(), args[0], platform, quiet); err != nil {
				return err
			}
			n, err := parseImage(args[0])
			if err == nil {
				fmt.Fprintln(c.out, n)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&platform, "platform", "", "OS/ARCH[/VARIANT]")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// pull fetches an image. Progress goes to standard error, so that run's output is only the container's.
func (c *cli) pull(ctx context.Context, name, platform string, quiet bool) error {
	n, err := parseImage(name)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {n.repo}, "tag": {n.version()}}
	if platform != "" {
		q.Set("platform", platform)
	}
	return c.transfer(ctx, call{method: "POST", path: "/images/create", query: q}, name, quiet, nil)
}

// transfer makes a request with credentials for an image and shows its progress.
func (c *cli) transfer(ctx context.Context, k call, name string, quiet bool, aux func(json.RawMessage)) error {
	auth, err := authHeader(name)
	if err != nil {
		return err
	}
	k.header = http.Header{"X-Registry-Auth": {auth}}
	resp, err := c.client.do(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	view := progressView{out: c.err, aux: aux}
	if quiet {
		view.out = io.Discard
	} else if _, ok := terminal(c.err); ok {
		view.width = c.width()
	}
	return view.show(resp.Body)
}

func (c *cli) pushCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "push IMAGE[:TAG]", Short: "Send an image to a registry", GroupID: groupImages,
		Example: "  slipway tag web localhost:5000/web && slipway push localhost:5000/web",
		Args:    exactly(1, "an image"), ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, tag, err := splitTag(args[0])
			if err != nil {
				return err
			}
			k := call{method: "POST", path: imagePath(repo, "/push"), query: url.Values{"tag": {tag}}}
			return c.transfer(cmd.Context(), k, args[0], quiet, nil)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (c *cli) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE TARGET", Short: "Give an image one more name", GroupID: groupImages,
		Args: exactly(2, "an image and its new name"), ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, tag, err := splitTag(args[1])
			if err != nil {
				return err
			}
			return c.client.post(cmd.Context(), imagePath(args[0], "/tag"), url.Values{"repo": {repo}, "tag": {tag}}, nil, nil)
		},
	}
}

func (c *cli) rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove images", GroupID: groupImages,
		Args: atLeast(1, "an image"), ValidArgsFunction: c.completeManyImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			var failures []error
			for _, name := range args {
				var removed []image.DeleteResponse
				if err := c.client.delete(cmd.Context(), imagePath(name, ""), q, &removed); err != nil {
					if !force || !isStatus(err, http.StatusNotFound) {
						failures = append(failures, err)
					}
					continue
				}
				for _, r := range removed {
					if r.Deleted != "" {
						fmt.Fprintln(c.out, "Deleted:", r.Deleted)
					} else {
						fmt.Fprintln(c.out, "Untagged:", r.Untagged)
					}
				}
			}
			return errors.Join(failures...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also when stopped containers use it or it has several names")
	return cmd
}

func (c *cli) loadCommand() *cobra.Command {
	var input string
	var quiet bool
	cmd := &cobra.Command{
		Use: "load", Short: "Load images from a tar (docker save or OCI layout)", GroupID: groupImages,
		Example: "  slipway load -i images.tar\n  docker save web | slipway load",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, done, err := c.openInput(input)
			if err != nil {
				return err
			}
			defer done()
			q := url.Values{}
			if quiet || !c.outIsTerminal() {
				q.Set("quiet", "1")
			}
			resp, err := c.client.do(cmd.Context(), call{method: "POST", path: "/images/load", query: q, stream: in, media: "application/x-tar"})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return (&progressView{out: c.out, width: c.width()}).show(resp.Body)
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "read from a `FILE` instead of standard input")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// openInput opens a file, or standard input for "" and "-", which must not be a terminal.
func (c *cli) openInput(name string) (io.Reader, func(), error) {
	if name != "" && name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		return f, func() { f.Close() }, nil
	}
	if c.inIsTerminal() {
		return nil, nil, usageError{errors.New("requested load from stdin, but stdin is empty")}
	}
	return c.in, func() {}, nil
}

func (c *cli) saveCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "save IMAGE...", Short: "Write images to a tar", GroupID: groupImages,
		Args: atLeast(1, "an image"), ValidArgsFunction: c.completeManyImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.download(cmd.Context(), call{method: "GET", path: "/images/get", query: url.Values{"names": args}}, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to a `FILE` instead of standard output")
	return cmd
}

// download writes an answer to a file, which appears only when it is complete, or to standard output, which must not be a terminal.
func (c *cli) download(ctx context.Context, k call, output string) error {
	if output == "" && c.outIsTerminal() {
		return usageError{errors.New("cowardly refusing to write a tar to a terminal: use -o FILE or redirect")}
	}
	resp, err := c.client.do(ctx, k)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if output == "" {
		_, err := io.Copy(c.out, resp.Body)
		return err
	}
	partial := output + ".partial"
	f, err := os.Create(partial)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", output, err), os.Remove(partial))
	}
	return os.Rename(partial, output)
}

func (c *cli) importCommand() *cobra.Command {
	var changes []string
	var msg, platform string
	cmd := &cobra.Command{
		Use: "import FILE|- [NAME[:TAG]]", Short: "Make an image of a tar of a root file system", GroupID: groupImages,
		Example: "  debootstrap stable root && tar -C root -c . | slipway import - debian",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, done, err := c.openInput(args[0])
			if err != nil {
				return err
			}
			defer done()
			q := url.Values{"fromSrc": {"-"}, "message": {msg}, "changes": changes}
			if platform != "" {
				q.Set("platform", platform)
			}
			if len(args) == 2 {
				repo, tag, err := splitTag(args[1])
				if err != nil {
					return err
				}
				q.Set("repo", repo)
				q.Set("tag", tag)
			}
			resp, err := c.client.do(cmd.Context(), call{method: "POST", path: "/images/create", query: q, stream: in, media: "application/x-tar"})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return (&progressView{out: c.out}).show(resp.Body)
		},
	}
	cmd.Flags().StringArrayVarP(&changes, "change", "c", nil, "apply a Dockerfile instruction")
	cmd.Flags().StringVarP(&msg, "message", "m", "", "comment")
	cmd.Flags().StringVar(&platform, "platform", "", "OS/ARCH[/VARIANT]")
	return cmd
}

func (c *cli) historyCommand() *cobra.Command {
	var output outputFlags
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Show how an image was made", GroupID: groupImages,
		Args: exactly(1, "an image"), ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []image.HistoryResponseItem
			if err := c.client.get(cmd.Context(), imagePath(args[0], "/history"), nil, &list); err != nil {
				return err
			}
			return historyListing(list, time.Now(), !noTrunc).print(c.out, output)
		},
	}
	output.register(cmd, "ids")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten anything")
	return checked(cmd, &output)
}

func historyListing(list []image.HistoryResponseItem, now time.Time, short bool) *listing {
	l := &listing{raw: list, columns: []column{
		{name: "ID", title: "IMAGE"}, {name: "CreatedSince", title: "CREATED"}, {name: "CreatedBy", title: "CREATED BY"},
		{name: "Size", title: "SIZE"}, {name: "Comment", title: "COMMENT"},
	}}
	for _, h := range list {
		id, by := h.ID, strings.ReplaceAll(h.CreatedBy, "\t", " ")
		if short {
			by = ellipsis(by, 45)
			if id != "<missing>" {
				id = shortID(id)
			}
		}
		l.add(id, id, ago(time.Unix(h.Created, 0), now), by, size(h.Size), h.Comment)
	}
	return l
}
