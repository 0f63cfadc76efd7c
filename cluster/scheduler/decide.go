package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"slipway.dev/slipway/cluster/store"
)

// decider chooses nodes. It is pure but for its caches: equal events give equal decisions.
type decider struct {
	*state
	reader  store.Reader
	classes map[string]*class
	clock   uint64

	fast, slow int // decisions of either kind
}

func newDecider(r store.Reader) *decider {
	return &decider{state: newState(), reader: r, classes: map[string]*class{}}
}

// maxCandidates bounds the memory of classes: together they hold about that many nodes.
const maxCandidates = 2_000_000

func (d *decider) class(p *podInfo) *class {
	d.clock++
	key := classKey(p)
	c := d.classes[key]
	if c == nil {
		if len(d.classes) >= max(8, min(128, maxCandidates/(len(d.nodes)+1))) {
			d.dropOldest()
		}
		c = newClass(key, p)
		d.classes[key] = c
	}
	c.used = d.clock
	return c
}

func (d *decider) dropOldest() {
	var oldest *class
	for _, c := range d.classes {
		if oldest == nil || c.used < oldest.used {
			oldest = c
		}
	}
	delete(d.classes, oldest.key)
}

// decide chooses a node and counts the pod there. The error says, in the words of
// Kubernetes, why there is none.
func (d *decider) decide(p *podInfo) (string, error) {
	if d.alive == 0 {
		return "", fmt.Errorf("no nodes available to schedule pods")
	}
	c := d.class(p)
	if !d.dependsOnOthers(p, d.reader) {
		d.fast++
		i := c.choose(d.state, p)
		if i < 0 {
			return "", d.explain(&search{s: d.state, p: p, c: c, reader: d.reader})
		}
		name := d.nodes[i].name
		d.assume(p, name)
		c.offer(d.state, i)
		return name, nil
	}
	d.slow++
	f := &search{s: d.state, p: p, c: c, reader: d.reader}
	if err := f.prepare(); err != nil {
		return "", fmt.Errorf("0/%d nodes are available: %w.", d.alive, err)
	}
	i := f.choose()
	if i < 0 {
		return "", d.explain(f)
	}
	name := d.nodes[i].name
	d.assume(p, name)
	return name, nil
}

func (d *decider) assume(p *podInfo, name string) {
	p.assumed = true
	d.place(p, name)
}

// explain counts why each node is not feasible.
func (d *decider) explain(f *search) error {
	counts := map[string]int{}
	for i := range d.nodes {
		switch why := f.feasible(i); why {
		case none, gone:
		case crowded:
			for _, line := range shortages(d.nodes[i], &f.p.req) {
				counts[line]++
			}
		default:
			counts[words[why]]++
		}
	}
	var lines []string
	for line, n := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", n, line))
	}
	slices.Sort(lines)
	return fmt.Errorf("0/%d nodes are available: %s.", d.alive, strings.Join(lines, ", "))
}
