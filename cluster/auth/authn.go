package auth

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// Issuer is in every service account token; it is also where its keys are published.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// Audiences are whom a token for the API itself is meant for.
var audiences = authenticator.Audiences{Issuer, "https://kubernetes.default.svc", "api"}

// Audiences are whom a service account token for this API is meant for.
func Audiences() authenticator.Audiences { return append(authenticator.Audiences(nil), audiences...) }

// Tokens signs service account tokens.
func (a *Authority) Tokens() (serviceaccount.TokenGenerator, error) {
	return serviceaccount.JWTTokenGenerator(Issuer, a.signer)
}

// Keys is the OpenID discovery document and the key set that verify the tokens.
func (a *Authority) Keys() (config, jwks []byte, err error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{a.signer.Public()})
	if err != nil {
		return nil, nil, err
	}
	md, err := serviceaccount.NewOpenIDMetadataProvider(Issuer, Issuer+"/openid/v1/jwks", "", keys)
	if err != nil {
		return nil, nil, err
	}
	config, _ = md.GetConfigJSON()
	jwks, _ = md.GetKeysetJSON()
	return config, jwks, nil
}

// Authenticator recognises client certificates and service account tokens.
type Authenticator struct {
	pool   *x509.CertPool
	tokens authenticator.Token

	mu    sync.Mutex
	known map[[sha256.Size]byte]known
}

// known is an answer that is not worked out again for a little while: a signature costs more
// to verify than most requests cost to serve.
type known struct {
	resp  *authenticator.Response
	until time.Time
}

const (
	knownFor = 10 * time.Second // upstream's: how long a deleted account's token may go on
	knownMax = 4096
)

var _ authenticator.Request = (*Authenticator)(nil)

// NewAuthenticator trusts what the authority has signed, about accounts that are in the store.
func NewAuthenticator(a *Authority, objects store.Reader) (*Authenticator, error) {
	keys, err := serviceaccount.StaticPublicKeysGetter([]any{a.signer.Public()})
	if err != nil {
		return nil, fmt.Errorf("service account keys: %w", err)
	}
	return &Authenticator{
		pool:   a.Pool(),
		tokens: serviceaccount.JWTTokenAuthenticator([]string{Issuer}, keys, audiences, serviceaccount.NewValidator(accounts{objects})),
		known:  map[[sha256.Size]byte]known{},
	}, nil
}

// AuthenticateRequest answers who sent a request; false when it carries nothing to tell by.
func (a *Authenticator) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if token, ok := bearer(req); ok {
		return a.token(req.Context(), token)
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		return a.certificate(req)
	}
	return nil, false, nil
}

func bearer(req *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(req.Header.Get("Authorization")), " ")
	token = strings.TrimSpace(token)
	return token, ok && strings.EqualFold(scheme, "bearer") && token != ""
}

func (a *Authenticator) certificate(req *http.Request) (*authenticator.Response, bool, error) {
	cert := req.TLS.PeerCertificates[0]
	key := sha256.Sum256(cert.Raw)
	if r, ok := a.recall(key); ok {
		return r, true, nil
	}
	opts := x509.VerifyOptions{Roots: a.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := cert.Verify(opts); err != nil {
		return nil, false, fmt.Errorf("client certificate of %q: %w", cert.Subject.CommonName, err)
	}
	resp, ok, err := x509request.CommonNameUserConversion.User(req.TLS.PeerCertificates[:1])
	if ok && err == nil {
		authenticated(resp)
		a.remember(key, resp)
	}
	return resp, ok, err
}

func (a *Authenticator) token(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	key := sha256.Sum256([]byte(token))
	if auds, ok := authenticator.AudiencesFrom(ctx); ok { // a token review for somebody else's API
		key = sha256.Sum256([]byte(strings.Join(auds, "\x00") + "\x00" + token))
	} else {
		ctx = authenticator.WithAudiences(ctx, audiences)
	}
	if r, ok := a.recall(key); ok {
		return r, true, nil
	}
	resp, ok, err := a.tokens.AuthenticateToken(ctx, token)
	if ok && err == nil {
		authenticated(resp)
		a.remember(key, resp)
	}
	return resp, ok, err
}

// authenticated adds the group that everybody is in who is somebody.
func authenticated(r *authenticator.Response) {
	u := r.User
	for _, g := range u.GetGroups() {
		if g == user.AllAuthenticated {
			return
		}
	}
	r.User = &user.DefaultInfo{Name: u.GetName(), UID: u.GetUID(), Extra: u.GetExtra(),
		Groups: append(append([]string{}, u.GetGroups()...), user.AllAuthenticated)}
}

func (a *Authenticator) recall(key [sha256.Size]byte) (*authenticator.Response, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.known[key]
	return k.resp, ok && time.Now().Before(k.until)
}

func (a *Authenticator) remember(key [sha256.Size]byte, r *authenticator.Response) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if len(a.known) >= knownMax {
		for k, v := range a.known {
			if now.After(v.until) {
				delete(a.known, k)
			}
		}
	}
	if len(a.known) < knownMax {
		a.known[key] = known{r, now.Add(knownFor)}
	}
}

// Forget makes the next request of everybody be judged anew: after a token's account or a
// certificate has been withdrawn, when ten seconds are too long.
func (a *Authenticator) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.known)
}

// Anonymous is who sends a request that says nothing about its sender.
func Anonymous() user.Info {
	return &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
}

// accounts finds what a token claims to belong to.
type accounts struct{ objects store.Reader }

func find[T store.Object](r store.Reader, gr schema.GroupResource, namespace, name string) (T, error) {
	o, ok := store.Get[T](r, gr, namespace, name)
	if !ok {
		return o, apierrors.NewNotFound(gr, name)
	}
	return o, nil
}

func (a accounts) GetServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	return find[*corev1.ServiceAccount](a.objects, kinds.ServiceAccounts, namespace, name)
}

func (a accounts) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	return find[*corev1.Pod](a.objects, kinds.Pods, namespace, name)
}

func (a accounts) GetSecret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	return find[*corev1.Secret](a.objects, kinds.Secrets, namespace, name)
}

func (a accounts) GetNode(_ context.Context, name string) (*corev1.Node, error) {
	return find[*corev1.Node](a.objects, kinds.Nodes, "", name)
}

var webhooks = schema.GroupResource{Group: "admissionregistration.k8s.io", Resource: "webhookconfigurations"}

func (a accounts) GetValidatingWebhookConfiguration(_ context.Context, name string) (*admissionregistrationv1.ValidatingWebhookConfiguration, error) {
	return nil, apierrors.NewNotFound(webhooks, name)
}

func (a accounts) GetMutatingWebhookConfiguration(_ context.Context, name string) (*admissionregistrationv1.MutatingWebhookConfiguration, error) {
	return nil, apierrors.NewNotFound(webhooks, name)
}
