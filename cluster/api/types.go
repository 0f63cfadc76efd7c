package api

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// lazyTypes is the schema that server-side apply and managed fields need, loaded by the first
// request that does.
type lazyTypes struct {
	load func() managedfields.TypeConverter
}

func newTypes() *lazyTypes {
	return &lazyTypes{load: sync.OnceValue(func() managedfields.TypeConverter { return applyconfigurations.NewTypeConverter(scheme) })}
}

func (l *lazyTypes) ObjectToTyped(o runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	return l.load().ObjectToTyped(o, opts...)
}

func (l *lazyTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	return l.load().TypedToObject(v)
}
