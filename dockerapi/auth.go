package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/moby/moby/api/types/registry"
)

// registryAuth reads X-Registry-Auth. Clients send it in either base64 alphabet, padded or not, and an
// unreadable one means no credentials, as it always has: the registry then says what is missing.
func registryAuth(r *request) registry.AuthConfig {
	var auth registry.AuthConfig
	raw, err := decodeBase64(r.Header.Get(registry.AuthHeader))
	if err != nil || json.Unmarshal(raw, &auth) != nil {
		return registry.AuthConfig{}
	}
	return auth
}

// registryConfig reads X-Registry-Config, the credentials of a build by registry.
func registryConfig(r *request) map[string]registry.AuthConfig {
	auths := map[string]registry.AuthConfig{}
	raw, err := decodeBase64(r.Header.Get("X-Registry-Config"))
	if err != nil || json.Unmarshal(raw, &auths) != nil {
		return nil
	}
	return auths
}

func decodeBase64(s string) ([]byte, error) {
	s = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(s, "="))
	return base64.RawURLEncoding.DecodeString(s)
}
