package container

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// shelf is a manager of n containers that never ran, the newest last.
func shelf(n int, spec func(i int) *Spec) *Manager {
	m := &Manager{byID: map[string]*instance{}}
	for i := range n {
		id := fmt.Sprintf("c%d", i)
		m.byID[id] = newInstance(id, "/containers/"+id, &record{Spec: spec(i), Created: time.Unix(int64(i), 0)}, saved{})
	}
	return m
}

func TestListSelects(t *testing.T) {
	specs := []*Spec{
		{Owner: OwnerNode, Labels: map[string]string{"pod": "1"}},
		{Owner: OwnerNode, Labels: map[string]string{"pod": "2"}},
		{Labels: map[string]string{"pod": "1", "other": ""}},
		{},
	}
	m := shelf(len(specs), func(i int) *Spec { return specs[i] })
	for _, tt := range []struct {
		filter Filter
		want   []string
	}{
		{Filter{All: true}, []string{"c3", "c2", "c1", "c0"}},
		{Filter{All: true, Limit: 2}, []string{"c3", "c2"}},
		{Filter{All: true, Owner: OwnerNode}, []string{"c1", "c0"}},
		{Filter{All: true, Label: []string{"pod=1"}}, []string{"c2", "c0"}},
		{Filter{All: true, Label: []string{"pod"}}, []string{"c2", "c1", "c0"}},
		{Filter{All: true, Label: []string{"pod=1", "other"}}, []string{"c2"}},
		{Filter{All: true, NotLabel: []string{"pod=1"}}, []string{"c3", "c1"}},
		{Filter{All: true, Label: []string{"pod=1"}, Owner: OwnerNode, ID: []string{"c1"}}, nil},
		{Filter{}, nil}, // none runs
	} {
		infos, err := m.List(tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range infos {
			got = append(got, i.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v selects %v, want %v", tt.filter, got, tt.want)
		}
	}
}

// BenchmarkListOfPod is what the node agent does at each step of each pod: it looks for the pod's one container among 100.
func BenchmarkListOfPod(b *testing.B) {
	m := shelf(100, func(i int) *Spec { return &Spec{Owner: OwnerNode, Labels: map[string]string{"pod": fmt.Sprint(i)}} })
	b.ReportAllocs()
	for b.Loop() {
		infos, err := m.List(Filter{Owner: OwnerNode, All: true, Label: []string{"pod=42"}})
		if err != nil || len(infos) != 1 {
			b.Fatal(infos, err)
		}
	}
}
