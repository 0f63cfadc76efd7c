package node

import (
	"context"
	"fmt"
	"path"
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// TokenSource issues service account tokens bound to a pod.
type TokenSource interface {
	Token(ctx context.Context, pod *corev1.Pod, audiences []string, lifetime time.Duration) (token string, expires time.Time, err error)
}

// file is one file of a projected volume.
type file struct {
	data []byte
	mode uint32
}

// payload is what a configMap, secret, downwardAPI or projected volume holds: relative path to
// file. refresh says when it must be made again although nothing changed (tokens); zero: never.
func (f facts) payload(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, tokens TokenSource) (files map[string]file, refresh time.Time, err error) {
	files = map[string]file{}
	add := func(p corev1.VolumeProjection, mode *int32) error {
		until, err := f.project(ctx, pod, &p, mode, tokens, files)
		if err != nil {
			return err
		}
		if refresh.IsZero() || (!until.IsZero() && until.Before(refresh)) {
			refresh = until
		}
		return nil
	}
	switch {
	case v.ConfigMap != nil:
		err = add(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional}}, v.ConfigMap.DefaultMode)
	case v.Secret != nil:
		err = add(corev1.VolumeProjection{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional}}, v.Secret.DefaultMode)
	case v.DownwardAPI != nil:
		err = add(corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: v.DownwardAPI.Items}}, v.DownwardAPI.DefaultMode)
	case v.Projected != nil:
		for _, p := range v.Projected.Sources {
			if err = add(p, v.Projected.DefaultMode); err != nil {
				break
			}
		}
	}
	return files, refresh, err
}

// project adds the files of one source.
func (f facts) project(ctx context.Context, pod *corev1.Pod, p *corev1.VolumeProjection, mode *int32, tokens TokenSource, files map[string]file) (refresh time.Time, err error) {
	base := uint32(0o644)
	if mode != nil {
		base = uint32(*mode)
	}
	switch {
	case p.ConfigMap != nil:
		cm, ok := store.Get[*corev1.ConfigMap](f.reader, kinds.ConfigMaps, pod.Namespace, p.ConfigMap.Name)
		if !ok {
			return refresh, missing(p.ConfigMap.Optional, "configmap %q not found", p.ConfigMap.Name)
		}
		data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
		for k, v := range cm.Data {
			data[k] = []byte(v)
		}
		for k, v := range cm.BinaryData {
			data[k] = v
		}
		return refresh, pick(files, data, p.ConfigMap.Items, base, p.ConfigMap.Optional)
	case p.Secret != nil:
		s, ok := store.Get[*corev1.Secret](f.reader, kinds.Secrets, pod.Namespace, p.Secret.Name)
		if !ok {
			return refresh, missing(p.Secret.Optional, "secret %q not found", p.Secret.Name)
		}
		return refresh, pick(files, s.Data, p.Secret.Items, base, p.Secret.Optional)
	case p.DownwardAPI != nil:
		return refresh, f.downward(pod, p.DownwardAPI.Items, base, files)
	case p.ServiceAccountToken != nil:
		return f.token(ctx, pod, p.ServiceAccountToken, base, tokens, files)
	}
	return refresh, fmt.Errorf("a projected source is of a kind that this node does not support")
}

// pick takes all keys, or the listed ones under their paths.
func pick(files map[string]file, data map[string][]byte, items []corev1.KeyToPath, mode uint32, opt *bool) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{v, mode}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if err := missing(opt, "references non-existent key: %s", it.Key); err != nil {
				return err
			}
			continue
		}
		m := mode
		if it.Mode != nil {
			m = uint32(*it.Mode)
		}
		files[path.Clean(it.Path)] = file{v, m}
	}
	return nil
}

func (f facts) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode uint32, files map[string]file) error {
	for _, it := range items {
		var value string
		var err error
		switch {
		case it.FieldRef != nil:
			value, err = f.field(pod, it.FieldRef.FieldPath)
		case it.ResourceFieldRef != nil:
			value, err = f.resource(pod, &corev1.Container{}, it.ResourceFieldRef)
		}
		if err != nil {
			return err
		}
		m := mode
		if it.Mode != nil {
			m = uint32(*it.Mode)
		}
		files[path.Clean(it.Path)] = file{[]byte(value), m}
	}
	return nil
}

// token makes a service account token, to be replaced when four fifths of its life are over.
func (f facts) token(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection, mode uint32, tokens TokenSource, files map[string]file) (time.Time, error) {
	life := time.Hour
	if p.ExpirationSeconds != nil {
		life = time.Duration(*p.ExpirationSeconds) * time.Second
	}
	var audiences []string
	if p.Audience != "" {
		audiences = []string{p.Audience}
	}
	token, expires, err := tokens.Token(ctx, pod, audiences, life)
	if err != nil {
		return time.Time{}, fmt.Errorf("token for service account %q: %w", pod.Spec.ServiceAccountName, err)
	}
	if pod.Spec.SecurityContext == nil || pod.Spec.SecurityContext.FSGroup == nil {
		mode = 0o600 | mode&0o044
	}
	files[path.Clean(p.Path)] = file{[]byte(token), mode}
	left := time.Until(expires)
	return expires.Add(-left / 5), nil
}
