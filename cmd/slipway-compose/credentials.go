package main

import (
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"

	"slipway.dev/slipway/compose/machine"
)

// hub is Docker Hub's name in the client configuration.
const hub = "https://index.docker.io/v1/"

// credentials finds who we are at an image's registry, in docker's own configuration; nil: nobody in particular.
func credentials(image string) (*machine.Login, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	server := reference.Domain(named)
	if server == "docker.io" {
		server = hub
	}
	auth, err := config.LoadDefaultConfigFile(io.Discard).GetAuthConfig(server)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", server, err)
	}
	if auth.Username == "" && auth.IdentityToken == "" {
		return nil, nil
	}
	return &machine.Login{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, ServerAddress: auth.ServerAddress}, nil
}
