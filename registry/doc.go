// Package registry is the front door for the OCI Distribution API (version 1.1): it
// translates HTTP into calls on the image store's repositories and holds no state.
//
// What is pushed here is an image of this machine at once, and what this machine pushes
// here is served without a byte being copied: there is one content store. Because of that,
// presence in the store says nothing; whether a blob is visible in a repository is decided
// by the store's membership records, and a blob of another repository answers exactly as
// one that does not exist.
//
// Manifests are stored and served byte for byte. Digests are sha256 or sha512.
package registry
