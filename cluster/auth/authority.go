package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// renewBefore leaves a daemon that restarts now and then time to renew its certificates.
	renewBefore = 60 * 24 * time.Hour
)

// Authority is the cluster's root of trust, kept in a directory.
type Authority struct {
	dir     string
	ca      *x509.Certificate
	caPEM   []byte
	caKey   crypto.Signer
	signer  *ecdsa.PrivateKey
	serving atomic.Pointer[tls.Certificate]
	admin   keyPair
}

// keyPair is a certificate and its key, in PEM.
type keyPair struct{ cert, key []byte }

// Names are what the API's serving certificate is valid for, besides this machine's loopback
// and the names of the kubernetes service.
type Names struct {
	Hosts []string
	IPs   []net.IP
}

// OpenAuthority loads the authority in dir, or makes it. The serving certificate is made anew
// when its names have changed, and every certificate when its end is near.
func OpenAuthority(dir string, names Names) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open certificate authority: %w", err)
	}
	a := &Authority{dir: dir}
	if err := a.loadCA(); err != nil {
		return nil, fmt.Errorf("open certificate authority %s: %w", dir, err)
	}
	var err error
	if a.signer, err = a.loadKey("sa.key"); err != nil {
		return nil, fmt.Errorf("open service account key: %w", err)
	}
	if err := a.loadServing(names); err != nil {
		return nil, fmt.Errorf("open serving certificate: %w", err)
	}
	a.admin, err = a.pair("admin", func(c *x509.Certificate) bool { return true }, func() *x509.Certificate {
		return clientTemplate("kubernetes-admin", "system:masters")
	})
	if err != nil {
		return nil, fmt.Errorf("open administrator's certificate: %w", err)
	}
	return a, nil
}

// CA is the CA's certificate in PEM: what clients trust, and the content of every
// namespace's kube-root-ca.crt.
func (a *Authority) CA() []byte { return a.caPEM }

// Pool trusts the CA alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.ca)
	return p
}

// TLS is the configuration of the API's listener: HTTP/2, and HTTP/1.1 beside it, because
// exec, attach and port-forward upgrade their connection. Client certificates are asked for
// and judged by the Authenticator, so that a wrong one is answered with 401, not with a
// handshake error.
func (a *Authority) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		ClientAuth:     tls.RequestClientCert,
		ClientCAs:      a.Pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.serving.Load(), nil },
	}
}

// ClientTLS is the configuration of a client that is the named user.
func (a *Authority) ClientTLS(user string, groups ...string) (*tls.Config, error) {
	p, err := a.issue(clientTemplate(user, groups...))
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.Pool(), Certificates: []tls.Certificate{cert}}, nil
}

func (a *Authority) loadCA() error {
	key, err := a.loadKey("ca.key")
	if err != nil {
		return err
	}
	a.caKey = key
	path := filepath.Join(a.dir, "ca.crt")
	pemBytes, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if pemBytes, err = newCA(key); err != nil {
			return err
		}
		err = writeFile(path, pemBytes, 0o644)
	}
	if err != nil {
		return err
	}
	if a.ca, err = parseCert(pemBytes); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !key.PublicKey.Equal(a.ca.PublicKey) {
		return fmt.Errorf("%s does not belong to ca.key beside it: restore the pair, or remove both to start a new authority (every client then needs a new kubeconfig)", path)
	}
	a.caPEM = pemBytes
	return nil
}

func newCA(key *ecdsa.PrivateKey) ([]byte, error) {
	now := time.Now()
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "slipway-ca"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(caLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		IsCA:     true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// loadServing keeps the certificate on disk for as long as it names everything asked for.
func (a *Authority) loadServing(names Names) error {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    hostNames(names.Hosts),
		IPAddresses: append([]net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, names.IPs...),
	}
	p, err := a.pair("apiserver", func(c *x509.Certificate) bool { return sameNames(c, t) }, func() *x509.Certificate { return t })
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return err
	}
	a.serving.Store(&cert)
	return nil
}

func hostNames(more []string) []string {
	hosts := []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster", "kubernetes.default.svc.cluster.local",
	}
	for _, h := range more {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

func sameNames(have, want *x509.Certificate) bool {
	if !slices.Equal(have.DNSNames, want.DNSNames) || len(have.IPAddresses) != len(want.IPAddresses) {
		return false
	}
	for i := range have.IPAddresses {
		if !have.IPAddresses[i].Equal(want.IPAddresses[i]) {
			return false
		}
	}
	return true
}

func clientTemplate(user string, groups ...string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// pair loads name.crt and name.key, or makes them when they are missing, unsuitable, of
// another CA, or near their end.
func (a *Authority) pair(name string, suits func(*x509.Certificate) bool, template func() *x509.Certificate) (keyPair, error) {
	certPath, keyPath := filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	cert, errCert := os.ReadFile(certPath)
	key, errKey := os.ReadFile(keyPath)
	if errCert == nil && errKey == nil && a.usable(cert, key, suits) {
		return keyPair{cert, key}, nil
	}
	p, err := a.issue(template())
	if err != nil {
		return keyPair{}, err
	}
	// The key first: a certificate without its key is seen as unusable and made again.
	if err := writeFile(keyPath, p.key, 0o600); err != nil {
		return keyPair{}, err
	}
	return p, writeFile(certPath, p.cert, 0o644)
}

func (a *Authority) usable(certPEM, keyPEM []byte, suits func(*x509.Certificate) bool) bool {
	cert, err := parseCert(certPEM)
	if err != nil || cert.CheckSignatureFrom(a.ca) != nil || time.Until(cert.NotAfter) < renewBefore || !suits(cert) {
		return false
	}
	_, err = tls.X509KeyPair(certPEM, keyPEM)
	return err == nil
}

func (a *Authority) issue(t *x509.Certificate) (keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, err
	}
	if t.SerialNumber, err = newSerial(); err != nil {
		return keyPair{}, err
	}
	now := time.Now()
	t.NotBefore, t.NotAfter = now.Add(-time.Hour), now.Add(leafLife)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, a.ca, key.Public(), a.caKey)
	if err != nil {
		return keyPair{}, err
	}
	keyPEM, err := encodeKey(key)
	return keyPair{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, err
}

func (a *Authority) loadKey(name string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(a.dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(path)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is damaged: it holds no PEM block", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return key, nil
}

func newKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, data, 0o600)
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("damaged: it holds no PEM block")
	}
	return x509.ParseCertificate(block.Bytes)
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

// writeFile replaces a file as a whole: a crash leaves the old one or the new one.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
