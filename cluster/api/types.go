package api

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"slipway.dev/slipway/cluster/api/openapi"
)

// lazyTypes are the types that server-side apply and managed fields need, loaded by the first
// request that does.
type lazyTypes struct {
	load func() (managedfields.TypeConverter, error)
}

var _ managedfields.TypeConverter = (*lazyTypes)(nil)

func newTypes() *lazyTypes {
	return &lazyTypes{sync.OnceValues(func() (managedfields.TypeConverter, error) {
		parser, err := openapi.Parser()
		if err != nil {
			return nil, err
		}
		return managedfields.NewSchemeTypeConverter(scheme, parser), nil
	})}
}

func (l *lazyTypes) ObjectToTyped(o runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	c, err := l.load()
	if err != nil {
		return nil, err
	}
	return c.ObjectToTyped(o, opts...)
}

func (l *lazyTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	c, err := l.load()
	if err != nil {
		return nil, err
	}
	return c.TypedToObject(v)
}
