package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// search is a decision that has to look at every node, because it depends on other pods or
// on volumes.
type search struct {
	s       *state
	p       *podInfo
	c       *class
	reader  store.Reader
	spreads []spread
	attract []domains // of the pod's affinity terms
	alone   bool      // no pod matches any of them, but the pod itself does
	repel   []domains // of the pod's anti-affinity terms
	others  []domains // of other pods' anti-affinity terms that match this pod
	likes   []liking
	volumes []nodeaffinity.LazyErrorNodeSelector
}

// domains count pods by the value of one node label.
type domains struct {
	key   string
	count map[string]int
}

// liking is a preferred affinity term, with its weight (negative for anti-affinity).
type liking struct {
	domains
	weight int32
}

// spread is one topology spread constraint.
type spread struct {
	domains
	maxSkew  int
	minimum  int
	self     int
	required bool
}

// dependsOnOthers says whether a pod needs the slow path.
func (s *state) dependsOnOthers(p *podInfo, reader store.Reader) bool {
	spec := &p.pod.Spec
	if len(p.ports) > 0 || len(spec.TopologySpreadConstraints) > 0 {
		return true
	}
	if a := spec.Affinity; a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) {
		return true
	}
	for i := range spec.Volumes {
		if spec.Volumes[i].PersistentVolumeClaim != nil || spec.Volumes[i].Ephemeral != nil {
			return true
		}
	}
	for _, other := range s.repelling {
		terms := requiredAnti(other.pod)
		for i := range terms {
			if newTerm(&terms[i], other.pod, reader).matches(p.pod) {
				return true
			}
		}
	}
	return false
}

// term is a pod affinity term, ready to be matched.
type term struct {
	key        string
	selector   labels.Selector
	namespaces []string
	spaces     labels.Selector // of namespaces; nil: those listed only
	reader     store.Reader
}

func newTerm(t *corev1.PodAffinityTerm, of *corev1.Pod, reader store.Reader) term {
	out := term{key: t.TopologyKey, namespaces: t.Namespaces, reader: reader, selector: labels.Nothing()}
	if sel, err := metav1.LabelSelectorAsSelector(t.LabelSelector); err == nil {
		out.selector = sel
	}
	if t.NamespaceSelector != nil {
		if sel, err := metav1.LabelSelectorAsSelector(t.NamespaceSelector); err == nil {
			out.spaces = sel
		}
	}
	if len(t.Namespaces) == 0 && t.NamespaceSelector == nil {
		out.namespaces = []string{of.Namespace}
	}
	return out
}

func (t term) inSpace(namespace string) bool {
	if slices.Contains(t.namespaces, namespace) {
		return true
	}
	if t.spaces == nil {
		return false
	}
	if t.spaces.Empty() {
		return true
	}
	ns, ok := t.reader.Snapshot(kinds.Namespaces).Get("", namespace)
	return ok && t.spaces.Matches(labels.Set(ns.GetLabels()))
}

func (t term) matches(pod *corev1.Pod) bool {
	return t.inSpace(pod.Namespace) && t.selector.Matches(labels.Set(pod.Labels))
}

// eachPod visits the placed pods that a term matches.
func (s *state) eachPod(t term, visit func(*podInfo)) {
	for namespace, pods := range s.spaces {
		if !t.inSpace(namespace) {
			continue
		}
		for _, q := range pods {
			if q.at.object != nil && t.selector.Matches(labels.Set(q.pod.Labels)) {
				visit(q)
			}
		}
	}
}

func (s *state) tally(t term) domains {
	d := domains{key: t.key, count: map[string]int{}}
	s.eachPod(t, func(q *podInfo) {
		if v, ok := q.at.object.Labels[t.key]; ok {
			d.count[v]++
		}
	})
	return d
}

// prepare counts once what every node is compared with.
func (f *search) prepare() error {
	if err := f.findVolumes(); err != nil {
		return err
	}
	f.spread()
	f.attraction()
	anti := requiredAnti(f.p.pod)
	for i := range anti {
		f.repel = append(f.repel, f.s.tally(newTerm(&anti[i], f.p.pod, f.reader)))
	}
	for _, other := range f.s.repelling {
		terms := requiredAnti(other.pod)
		for i := range terms {
			t := newTerm(&terms[i], other.pod, f.reader)
			if other.at.object == nil || !t.matches(f.p.pod) {
				continue
			}
			if v, ok := other.at.object.Labels[t.key]; ok {
				f.others = append(f.others, domains{key: t.key, count: map[string]int{v: 1}})
			}
		}
	}
	f.preferences()
	return nil
}

// attraction counts the pods that match all affinity terms, by each term's domain.
func (f *search) attraction() {
	terms := requiredAffinity(f.p.pod)
	if len(terms) == 0 {
		return
	}
	var parsed []term
	f.alone = true
	for i := range terms {
		t := newTerm(&terms[i], f.p.pod, f.reader)
		parsed = append(parsed, t)
		f.attract = append(f.attract, domains{key: t.key, count: map[string]int{}})
		f.alone = f.alone && t.matches(f.p.pod)
	}
	f.s.eachPod(parsed[0], func(q *podInfo) {
		for _, t := range parsed[1:] {
			if !t.matches(q.pod) {
				return
			}
		}
		for i := range parsed {
			if v, ok := q.at.object.Labels[parsed[i].key]; ok {
				f.attract[i].count[v]++
				f.alone = false
			}
		}
	})
}

func (f *search) preferences() {
	a := f.p.pod.Spec.Affinity
	if a == nil {
		return
	}
	add := func(terms []corev1.WeightedPodAffinityTerm, sign int32) {
		for i := range terms {
			t := newTerm(&terms[i].PodAffinityTerm, f.p.pod, f.reader)
			f.likes = append(f.likes, liking{f.s.tally(t), sign * terms[i].Weight})
		}
	}
	if a.PodAffinity != nil {
		add(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, 1)
	}
	if a.PodAntiAffinity != nil {
		add(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
}

// spread counts matching pods by domain, over the nodes that each constraint considers.
func (f *search) spread() {
	constraints := f.p.pod.Spec.TopologySpreadConstraints
	var keys []string
	for i := range constraints {
		keys = append(keys, constraints[i].TopologyKey)
	}
	for i := range constraints {
		f.spreads = append(f.spreads, f.countSpread(&constraints[i], keys))
	}
}

func (f *search) countSpread(c *corev1.TopologySpreadConstraint, keys []string) spread {
	selector := spreadSelector(c, f.p.pod)
	out := spread{domains: domains{key: c.TopologyKey, count: map[string]int{}}, maxSkew: int(c.MaxSkew), required: c.WhenUnsatisfiable == corev1.DoNotSchedule}
	if selector.Matches(labels.Set(f.p.pod.Labels)) {
		out.self = 1
	}
	for i, n := range f.s.nodes {
		if n.object == nil || !f.considered(c, keys, i) {
			continue
		}
		matching := 0
		for _, q := range n.pods {
			if q.pod.Namespace == f.p.pod.Namespace && q.pod.DeletionTimestamp == nil && selector.Matches(labels.Set(q.pod.Labels)) {
				matching++
			}
		}
		out.count[n.object.Labels[c.TopologyKey]] += matching
	}
	first := true
	for _, n := range out.count {
		if first || n < out.minimum {
			out.minimum, first = n, false
		}
	}
	if c.MinDomains != nil && len(out.count) < int(*c.MinDomains) {
		out.minimum = 0
	}
	return out
}

// considered says whether a node counts for a constraint, by its inclusion policies.
func (f *search) considered(c *corev1.TopologySpreadConstraint, keys []string, i int) bool {
	n := f.s.nodes[i]
	for _, key := range keys {
		if _, ok := n.object.Labels[key]; !ok {
			return false
		}
	}
	if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
		if ok, _ := f.c.required.Match(n.object); !ok {
			return false
		}
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		if why := f.c.staticOf(f.s, i).reason; why == untolerated || why == unschedulable {
			return false
		}
	}
	return true
}

func spreadSelector(c *corev1.TopologySpreadConstraint, pod *corev1.Pod) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
	if err != nil {
		return labels.Nothing()
	}
	for _, key := range c.MatchLabelKeys {
		if v, ok := pod.Labels[key]; ok {
			if r, err := labels.NewRequirement(key, "=", []string{v}); err == nil {
				selector = selector.Add(*r)
			}
		}
	}
	return selector
}

// feasible says why not, in the order of upstream's plugins.
func (f *search) feasible(i int) reason {
	n := f.s.nodes[i]
	if n.object == nil {
		return gone
	}
	if why := f.c.staticOf(f.s, i).reason; why != none {
		return why
	}
	for _, p := range f.p.ports {
		for _, taken := range n.ports {
			if p.clashes(taken) {
				return portsTaken
			}
		}
	}
	if !fits(n, &f.p.req) {
		return crowded
	}
	for k := range f.volumes {
		if ok, _ := f.volumes[k].Match(n.object); !ok {
			return volumeElsewhere
		}
	}
	if why := f.even(n.object); why != none {
		return why
	}
	return f.affine(n.object)
}

func (f *search) even(n *corev1.Node) reason {
	for i := range f.spreads {
		sp := &f.spreads[i]
		if !sp.required {
			continue
		}
		v, ok := n.Labels[sp.key]
		if !ok {
			return spreadLabelMissing
		}
		if sp.count[v]+sp.self-sp.minimum > sp.maxSkew {
			return unevenSpread
		}
	}
	return none
}

func (f *search) affine(n *corev1.Node) reason {
	for i := range f.attract {
		v, ok := n.Labels[f.attract[i].key]
		if !ok || (!f.alone && f.attract[i].count[v] == 0) {
			return attractionMissing
		}
	}
	if in(f.repel, n) {
		return repelled
	}
	if in(f.others, n) {
		return repelledByOthers
	}
	return none
}

func in(list []domains, n *corev1.Node) bool {
	for i := range list {
		if v, ok := n.Labels[list[i].key]; ok && list[i].count[v] > 0 {
			return true
		}
	}
	return false
}

// score prefers what the pod prefers; balance decides between equals.
func (f *search) score(i int) int32 {
	n := f.s.nodes[i]
	total := f.c.staticOf(f.s, i).score + balance(n, &f.p.req)
	for k := range f.likes {
		total += 20 * f.likes[k].weight * int32(min(f.likes[k].count[n.object.Labels[f.likes[k].key]], 100))
	}
	for k := range f.spreads {
		total -= 200 * int32(f.spreads[k].count[n.object.Labels[f.spreads[k].key]])
	}
	return total - 100*f.s.siblings[f.p.owner][n]
}

// choose is the best node, or -1.
func (f *search) choose() int {
	best, top := -1, int32(0)
	for i := range f.s.nodes {
		if f.feasible(i) != none {
			continue
		}
		if score := f.score(i); best < 0 || score > top {
			best, top = i, score
		}
	}
	return best
}

// findVolumes finds where the pod's claims are; an error is a pod that has to wait for one.
func (f *search) findVolumes() error {
	for _, name := range claimsOf(f.p.pod) {
		if err := f.findVolume(name); err != nil {
			return err
		}
	}
	return nil
}

// claimsOf names the claims that a pod mounts.
func claimsOf(pod *corev1.Pod) (names []string) {
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, pod.Name+"-"+v.Name)
		}
	}
	return names
}

// mounted says whether a pod that has a node mounts a claim of this pod's namespace.
func (f *search) mounted(claim string) bool {
	return slices.ContainsFunc(f.s.spaces[f.p.pod.Namespace], func(q *podInfo) bool { return slices.Contains(claimsOf(q.pod), claim) })
}

func (f *search) findVolume(claim string) error {
	pvc, ok := store.Get[*corev1.PersistentVolumeClaim](f.reader, kinds.PersistentVolumeClaims, f.p.pod.Namespace, claim)
	if !ok {
		return fmt.Errorf("persistentvolumeclaim %q not found", claim)
	}
	if pvc.DeletionTimestamp != nil {
		return fmt.Errorf("persistentvolumeclaim %q is being deleted", claim)
	}
	if pvc.Spec.VolumeName == "" || pvc.Status.Phase != corev1.ClaimBound {
		return fmt.Errorf("pod has unbound immediate PersistentVolumeClaims")
	}
	pv, ok := store.Get[*corev1.PersistentVolume](f.reader, kinds.PersistentVolumes, "", pvc.Spec.VolumeName)
	if !ok {
		return fmt.Errorf("persistentvolume %q not found", pvc.Spec.VolumeName)
	}
	if slices.Contains(pvc.Spec.AccessModes, corev1.ReadWriteOncePod) && f.mounted(claim) {
		return fmt.Errorf("%d node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode", f.s.alive)
	}
	if pv.Spec.NodeAffinity != nil && pv.Spec.NodeAffinity.Required != nil {
		f.volumes = append(f.volumes, *nodeaffinity.NewLazyErrorNodeSelector(pv.Spec.NodeAffinity.Required))
	}
	return nil
}
