package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/registry"
)

// hub is Docker Hub's name in the client configuration.
const hub = "https://index.docker.io/v1/"

// dockerConfig is the part of ~/.docker/config.json that says who we are at registries.
type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth,omitempty"`
		Username      string `json:"username,omitempty"`
		Password      string `json:"password,omitempty"`
		IdentityToken string `json:"identitytoken,omitempty"`
		RegistryToken string `json:"registrytoken,omitempty"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

func configPath() (string, error) {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".docker", "config.json"), nil
}

func readDockerConfig() (dockerConfig, error) {
	var c dockerConfig
	path, err := configPath()
	if err != nil {
		return c, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// credentials looks a registry up as docker does: its helper, the general store, the file.
func (c dockerConfig) credentials(server string) (registry.AuthConfig, error) {
	if helper := c.CredHelpers[server]; helper != "" {
		return askHelper(helper, server)
	}
	if c.CredsStore != "" {
		return askHelper(c.CredsStore, server)
	}
	for _, name := range []string{server, "https://" + server, "http://" + server, "https://" + server + "/v1/", "https://" + server + "/v2/"} {
		a, ok := c.Auths[name]
		if !ok {
			continue
		}
		auth := registry.AuthConfig{
			Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: server,
		}
		if a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return auth, fmt.Errorf("credentials for %s are not valid base64", server)
			}
			auth.Username, auth.Password, _ = strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
		}
		return auth, nil
	}
	return registry.AuthConfig{}, nil
}

// askHelper runs docker-credential-NAME, which answers in JSON.
func askHelper(helper, server string) (registry.AuthConfig, error) {
	cmd := exec.Command("docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(server)
	out, err := cmd.Output()
	if err != nil {
		if strings.Contains(string(out), "credentials not found") {
			return registry.AuthConfig{}, nil
		}
		return registry.AuthConfig{}, fmt.Errorf("docker-credential-%s get: %w", helper, err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil {
		return registry.AuthConfig{}, fmt.Errorf("docker-credential-%s get: %w", helper, err)
	}
	if answer.Username == "<token>" {
		return registry.AuthConfig{IdentityToken: answer.Secret, ServerAddress: server}, nil
	}
	return registry.AuthConfig{Username: answer.Username, Password: answer.Secret, ServerAddress: server}, nil
}

// authHeader is X-Registry-Auth for an image. Unreadable credentials are told, not ignored.
func authHeader(image string) (string, error) {
	c, err := readDockerConfig()
	if err != nil {
		return "", err
	}
	n, err := parseImage(image)
	if err != nil {
		return "", err
	}
	auth, err := c.credentials(n.registry())
	if err != nil {
		return "", err
	}
	return encodeHeader(auth)
}

// configHeader is X-Registry-Config for a build: everything that the file knows.
func configHeader() (string, error) {
	c, err := readDockerConfig()
	if err != nil {
		return "", err
	}
	auths := map[string]registry.AuthConfig{}
	for server := range c.Auths {
		auth, err := c.credentials(server)
		if err != nil {
			return "", err
		}
		auths[server] = auth
	}
	for server := range c.CredHelpers {
		if auth, err := c.credentials(server); err == nil {
			auths[server] = auth
		}
	}
	return encodeHeader(auths)
}

func encodeHeader(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	return base64.URLEncoding.EncodeToString(raw), nil
}
