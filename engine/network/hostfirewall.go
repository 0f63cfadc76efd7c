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
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/network/nft"
)

// hostFirewall lives with what others do to the machine's packet rules. A drop in any
// chain is final, so where another tool drops by policy what is forwarded, or what this
// machine receives, no table of ours can let it through: accepts go into that tool's own chains. Into those of
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
	warnings, err := h.open(ctx)
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
	return h.m.table.rebuild(h.m.want)
}

// way is a hook where another tool may drop by policy what containers need, and what that is: as rules of ours, and as
// those of iptables.
type way struct {
	hook     *nftables.ChainHook
	chain    string // of iptables
	drops    string // for people: what goes missing
	without  string // and what containers lack then
	rules    []nft.Rule
	iptables [][]string
}

// ways are the path between containers and others, and the one to this machine itself: of all that it listens to,
// containers need the name servers and, as calls of services that are translated, what pods are served by it, such as the
// Kubernetes API.
func (h *hostFirewall) ways() []way {
	all, ours := h.m.table.all, "sw"+h.m.opts.Instance+"-+"
	names := func(proto byte) nft.Rule {
		return nft.If(nft.IIf(all), nft.L4(proto), nft.Dport(53), nft.Accept())
	}
	return []way{
		{
			nftables.ChainHookForward, "FORWARD", "forwarded packets", "containers have no network beyond this machine until it accepts interfaces " + all,
			[]nft.Rule{nft.If(nft.IIf(all), nft.Accept()), nft.If(nft.OIf(all), nft.Accept())},
			[][]string{{"-i", ours}, {"-o", ours}},
		},
		{
			nftables.ChainHookInput, "INPUT", "packets to this machine", "containers resolve no names until it accepts port 53 from interfaces " + all,
			[]nft.Rule{names(unix.IPPROTO_UDP), names(unix.IPPROTO_TCP), nft.If(nft.IIf(all), nft.DNATed(), nft.Accept())},
			[][]string{{"-i", ours, "-p", "udp", "--dport", "53"}, {"-i", ours, "-p", "tcp", "--dport", "53"}, {"-i", ours, "-m", "conntrack", "--ctstate", "DNAT"}},
		},
	}
}

// sees says whether every IPv4 packet of this way passes a chain.
func (w way) sees(c *nftables.Chain) bool {
	return (c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyINet) && c.Hooknum != nil && *c.Hooknum == *w.hook
}

func (h *hostFirewall) open(ctx context.Context) (warnings []string, err error) {
	chains, err := h.m.nft.Chains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	warnings = h.firewalldWarning(chains)
	dockerUser := slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == "DOCKER-USER"
	})
	var errs []error
	for _, w := range h.ways() {
		for _, c := range chains {
			switch {
			case !w.sees(c) || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop:
			case h.m.opts.HostPolicy:
				warnings = append(warnings, fmt.Sprintf("nftables chain %s of table %s drops %s by policy, and host-policy mode is on: %s", c.Name, c.Table.Name, w.drops, w.without))
			default:
				errs = append(errs, h.openChain(ctx, w, c, dockerUser))
			}
		}
	}
	if !h.m.opts.HostPolicy && legacyInUse() {
		errs = append(errs, h.openLegacy(ctx))
	}
	return warnings, errors.Join(errs...)
}

// openChain has a chain that drops by policy accept what containers need.
func (h *hostFirewall) openChain(ctx context.Context, w way, c *nftables.Chain, dockerUser bool) error {
	if c.Table.Family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == w.chain {
		err := h.accept(ctx, "iptables", w, dockerUser)
		if !errors.Is(err, exec.ErrNotFound) {
			return err
		}
	}
	if err := h.m.nft.Invite(c, h.m.table.name, w.rules...); err != nil {
		return fmt.Errorf("nftables chain %s of table %s drops %s by policy, and accepts for our interfaces could not be added: %s: %w", c.Name, c.Table.Name, w.drops, w.without, err)
	}
	return nil
}

// firewalldWarning: firewalld rejects forwarding by rules, not by policy, for interfaces
// that are in none of its zones.
func (h *hostFirewall) firewalldWarning(chains []*nftables.Chain) []string {
	if !slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name == "firewalld" }) {
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
	errs := []error{err}
	for _, w := range h.ways() {
		if strings.Contains(out, "-P "+w.chain+" DROP") {
			errs = append(errs, h.accept(ctx, "iptables-legacy", w, strings.Contains(out, "-N DOCKER-USER")))
		}
	}
	return errors.Join(errs...)
}

// accept puts our accepts into a chain of iptables. Isolation stays our own table's task.
func (h *hostFirewall) accept(ctx context.Context, command string, w way, dockerUser bool) error {
	chain := w.chain
	if chain == "FORWARD" && dockerUser {
		chain = "DOCKER-USER" // docker leaves it alone when it rewrites FORWARD
	}
	for _, match := range w.iptables {
		spec := slices.Concat(match, []string{"-m", "comment", "--comment", h.m.table.name, "-j", "ACCEPT"})
		if _, err := iptables(ctx, command, append([]string{"-C", chain}, spec...)...); err == nil {
			continue
		}
		if _, err := iptables(ctx, command, append([]string{"-I", chain}, spec...)...); err != nil {
			return fmt.Errorf("%s drops by policy, and accepts for our interfaces could not be added: %s: %w", w.chain, w.without, err)
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
		if slices.ContainsFunc(h.ways(), func(w way) bool { return w.sees(c) }) && !strings.HasPrefix(c.Table.Name, "slipway-") {
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
