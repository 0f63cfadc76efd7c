package image

// remoteOptions are the store's rules for reaching registries.
type remoteOptions struct {
	insecure func(host string) bool
	certsDir string
}
