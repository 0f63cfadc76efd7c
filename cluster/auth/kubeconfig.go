package auth

import (
	"encoding/base64"
	"fmt"

	"sigs.k8s.io/yaml"
)

// Kubeconfig is the administrator's, for the API at server ("https://127.0.0.1:6443").
func (a *Authority) Kubeconfig(server string) ([]byte, error) {
	const name = "slipway"
	b64 := base64.StdEncoding.EncodeToString
	out, err := yaml.Marshal(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": map[string]any{
			"server": server, "certificate-authority-data": b64(a.caPEM)}}},
		"users": []any{map[string]any{"name": name, "user": map[string]any{
			"client-certificate-data": b64(a.admin.cert), "client-key-data": b64(a.admin.key)}}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": name}}},
	})
	if err != nil {
		return nil, fmt.Errorf("kubeconfig for %s: %w", server, err)
	}
	return out, nil
}

// WriteKubeconfig writes the administrator's kubeconfig, readable by its owner alone.
func (a *Authority) WriteKubeconfig(path, server string) error {
	data, err := a.Kubeconfig(server)
	if err != nil {
		return err
	}
	return writeFile(path, data, 0o600)
}
