package api

import (
	"os/exec"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rogpeppe/go-internal/testscript"
)

// The scripts are sessions of the real kubectl against a server of their own.
func TestScripts(t *testing.T) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("kubectl is not installed: it is the client under test")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			i := start(env.T().(testing.TB))
			env.Setenv("KUBECONFIG", i.kubeconfig)
			env.Setenv("HOME", env.WorkDir)
			sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "default"}}
			_, err := i.Client().Create(t.Context(), sa)
			return err
		},
	})
}
