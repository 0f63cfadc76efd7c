package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"

	"slipway.dev/slipway/engine/network/nft"
)

// hostFirewall lives with what others do to the machine's packet rules. A drop in any
// chain is final, so where another tool drops forwarded packets by policy, no table
// of ours can let them through: accepts go into that tool's own chains. Into those of
// iptables they go by its own command, since rules in another notation would make it
// refuse its table; into all others, and where iptables is not installed, as they are.
//
// It listens for changes instead of looking now and then, and puts our own table back
// when somebody flushes it.
type hostFirewall struct {
	m       *Manager
	watch   *nft.Watcher
	cancel  context.CancelFunc
	running sync.WaitGroup
	once    sync.Once

	mu       sync.Mutex
	warnings []string
}

// settle is how long a burst of changes may go on before we look: a firewall that
// reloads touches hundreds of rules.
const settle = 100 * time.Millisecond

func newHostFirewall(m *Manager) *hostFirewall { return &hostFirewall{m: m} }

func (h *hostFirewall) start(ctx context.Context) error {
	var err error
	if h.watch, err = nft.Watch(); err != nil {
		return err
	}
	h.check(ctx)
	run, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.running.Go(func() { h.run(run) })
	return nil
}

func (h *hostFirewall) close() {
	h.once.Do(func() {
		if h.cancel != nil {
			h.cancel()
		}
		h.running.Wait()
		if h.watch != nil {
			h.watch.Close()
		}
	})
}

func (h *hostFirewall) run(ctx context.Context) {
	var wake sync.WaitGroup
	defer wake.Wait()
	due := make(chan struct{}, 1)
	wake.Go(func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
				return
			case <-due:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
			h.check(ctx)
		}
	})
	for {
		changes, err := h.watch.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				h.m.log.Error("changes of the host's firewall are no longer noticed", "error", err)
			}
			return
		}
		if !slices.ContainsFunc(changes, h.concerns) {
			continue
		}
		select {
		case due <- struct{}{}:
		default:
		}
	}
}

func (h *hostFirewall) concerns(c nft.Change) bool {
	return c.Deleted && c.Table == h.m.table.name || !strings.HasPrefix(c.Table, "slipway-")
}

// check repairs what it can and remembers what it cannot.
func (h *hostFirewall) check(ctx context.Context) {
	if err := h.restoreTable(); err != nil {
		h.m.log.Error("own packet table could not be restored", "error", err)
	}
	warnings, err := h.openForward(ctx)
	if err != nil && ctx.Err() == nil {
		h.m.log.Error("host firewall was not opened for containers", "error", err)
		warnings = append(warnings, err.Error())
	}
	h.mu.Lock()
	fresh := !slices.Equal(h.warnings, warnings)
	h.warnings = warnings
	h.mu.Unlock()
	if fresh {
		for _, w := range warnings {
			h.m.log.Warn(w)
		}
	}
}

func (h *hostFirewall) restoreTable() error {
	tables, err := h.m.nft.Tables()
	if err != nil || slices.Contains(tables, h.m.table.name) {
		return err
	}
	h.m.log.Warn("packet table was removed by somebody, restoring it", "table", h.m.table.name)
	return h.m.table.rebuild(h.m.want())
}

func (h *hostFirewall) openForward(ctx context.Context) (warnings []string, err error) {
	blockers, dockerUser, err := h.blockers()
	if err != nil {
		return nil, err
	}
	warnings = h.firewalldWarning()
	var errs []error
	for _, b := range blockers {
		if h.m.opts.HostPolicy {
			warnings = append(warnings, fmt.Sprintf("nftables chain %s of table %s drops forwarded packets by policy, and host-policy mode is on: containers have no network beyond this machine until it accepts interfaces %s", b.Name, b.Table.Name, h.m.table.all))
			continue
		}
		errs = append(errs, h.openChain(ctx, b, dockerUser))
	}
	if !h.m.opts.HostPolicy && legacyInUse() {
		errs = append(errs, h.openLegacy(ctx))
	}
	return warnings, errors.Join(errs...)
}

// openChain has a chain that drops by policy accept what our interfaces forward.
func (h *hostFirewall) openChain(ctx context.Context, b *nftables.Chain, dockerUser bool) error {
	if b.Table.Family == nftables.TableFamilyIPv4 && b.Table.Name == "filter" && b.Name == "FORWARD" {
		err := h.accept(ctx, "iptables", dockerUser)
		if !errors.Is(err, exec.ErrNotFound) {
			return err
		}
	}
	err := h.m.nft.Invite(b, h.m.table.name, nft.If(nft.IIf(h.m.table.all), nft.Accept()), nft.If(nft.OIf(h.m.table.all), nft.Accept()))
	if err != nil {
		return fmt.Errorf("nftables chain %s of table %s drops forwarded packets by policy, and accepts for our interfaces could not be added (remedy: accept %s there yourself): %w", b.Name, b.Table.Name, h.m.table.all, err)
	}
	return nil
}

// blockers lists foreign base chains on the forward path that drop by policy.
func (h *hostFirewall) blockers() (found []*nftables.Chain, dockerUser bool, err error) {
	chains, err := h.m.nft.Chains()
	if err != nil {
		return nil, false, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == "DOCKER-USER" {
			dockerUser = true
		}
		if forwards(c) && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			found = append(found, c)
		}
	}
	return found, dockerUser, nil
}

// forwards says whether a chain sees every forwarded IPv4 packet.
func forwards(c *nftables.Chain) bool {
	return (c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet) &&
		c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
}

// firewalldWarning: firewalld rejects forwarding by rules, not by policy, for interfaces
// that are in none of its zones.
func (h *hostFirewall) firewalldWarning() []string {
	chains, err := h.m.nft.Chains()
	if err != nil || !slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == "firewalld" }) {
		return nil
	}
	return []string{fmt.Sprintf("firewalld runs on this machine and rejects what containers send beyond it, unless their addresses are in a zone that accepts: firewall-cmd --zone=trusted --add-source=%s (and each network's subnet)", h.m.node.Pods)}
}

// legacyInUse says whether somebody uses the old iptables, which nftables does not show.
func legacyInUse() bool {
	b, err := os.ReadFile("/proc/net/ip_tables_names")
	return err == nil && slices.Contains(strings.Fields(string(b)), "filter")
}

func (h *hostFirewall) openLegacy(ctx context.Context) error {
	out, err := iptables(ctx, "iptables-legacy", "-S")
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("this machine has rules of the old iptables, which nobody can see without iptables-legacy: if they drop forwarded packets, containers have no network (remedy: install iptables)")
	}
	if err != nil || !strings.Contains(out, "-P FORWARD DROP") {
		return err
	}
	return h.accept(ctx, "iptables-legacy", strings.Contains(out, "-N DOCKER-USER"))
}

// ruleSpecs are our accepts. Isolation stays our own table's task.
func (h *hostFirewall) ruleSpecs() [][]string {
	ours := "sw" + h.m.opts.Instance + "-+"
	note := []string{"-m", "comment", "--comment", h.m.table.name, "-j", "ACCEPT"}
	return [][]string{append([]string{"-i", ours}, note...), append([]string{"-o", ours}, note...)}
}

func (h *hostFirewall) accept(ctx context.Context, command string, dockerUser bool) error {
	chain := "FORWARD"
	if dockerUser {
		chain = "DOCKER-USER" // docker leaves it alone when it rewrites FORWARD
	}
	for _, spec := range h.ruleSpecs() {
		if _, err := iptables(ctx, command, append([]string{"-C", chain}, spec...)...); err == nil {
			continue
		}
		if _, err := iptables(ctx, command, append([]string{"-I", chain}, spec...)...); err != nil {
			return fmt.Errorf("FORWARD drops by policy, and accepts for our interfaces could not be added (remedy: accept %s there yourself): %w", h.m.table.all, err)
		}
	}
	return nil
}

// remove takes our accepts out of other tools' chains.
func (h *hostFirewall) remove(ctx context.Context) error {
	commands := []string{"iptables"}
	if legacyInUse() {
		commands = append(commands, "iptables-legacy")
	}
	var errs []error
	for _, command := range commands {
		out, err := h.listRules(ctx, command)
		if errors.Is(err, exec.ErrNotFound) {
			continue // it has not put anything there for us
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for line := range strings.Lines(out) {
			rule, ok := strings.CutPrefix(strings.TrimSpace(line), "-A ")
			if !ok || !strings.Contains(rule, "--comment "+h.m.table.name+" ") {
				continue
			}
			_, err := iptables(ctx, command, append([]string{"-D"}, strings.Fields(rule)...)...)
			errs = append(errs, err)
		}
	}
	chains, err := h.m.nft.Chains()
	errs = append(errs, err)
	for _, c := range chains {
		if forwards(c) && !strings.HasPrefix(c.Table.Name, "slipway-") {
			errs = append(errs, h.m.nft.Uninvite(c, h.m.table.name))
		}
	}
	return errors.Join(errs...)
}

// listRules avoids running iptables where there is nothing of it: even listing makes it
// create its tables.
func (h *hostFirewall) listRules(ctx context.Context, command string) (string, error) {
	if command == "iptables" {
		tables, err := h.m.nft.Tables()
		if err != nil || !slices.Contains(tables, "filter") {
			return "", err
		}
	}
	return iptables(ctx, command, "-S")
}

func iptables(ctx context.Context, command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out, problem bytes.Buffer
	cmd := exec.CommandContext(ctx, command, append([]string{"-w"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(problem.String()))
	}
	return out.String(), nil
}

// Warnings says, in sentences for people, what on this machine keeps containers from
// the network.
func (m *Manager) Warnings() []string {
	m.wall.mu.Lock()
	defer m.wall.mu.Unlock()
	return slices.Concat(m.stolen, m.wall.warnings)
}
