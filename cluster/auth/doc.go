// Package auth says who a client is, what it may do, and writes down what it did.
//
// An Authority is the cluster's root of trust, made once and kept in files that only root can
// read: the CA, the API's serving certificate, the administrator's client certificate, and the
// key that signs service account tokens. From it come a kubeconfig and the TLS configuration.
//
// An Authenticator recognises client certificates of that CA and service account tokens of
// that key (for as long as the account, and the pod that the token is bound to, exist). Nobody
// else is let in, except that anonymous clients may ask for health and version.
//
// An Authorizer is RBAC, evaluated by upstream's code over the roles and bindings in the
// store; an Audit is a bounded log of who did what, without the content of any object.
//
// Everything reads the store in place. The package writes to no store and serves no HTTP.
package auth
