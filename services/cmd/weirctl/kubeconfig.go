package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // Users of OpenID Connect.
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const weirNamespace = "weir-system" // Of the manifests.

// kubeconfig is how the API server is found: by the flags and files of kubectl.
type kubeconfig struct{ path, context string }

func (k *kubeconfig) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&k.path, "kubeconfig", "", "kubeconfig of the cluster; KUBECONFIG or ~/.kube/config by default")
	f.StringVar(&k.context, "context", "", "context of the kubeconfig; the current one by default")
}

var errNoKubeconfig = errors.New("there is no kubeconfig: give --kubeconfig or set KUBECONFIG")

// load reads the kubeconfig. Without one, a Pod of a cluster is what its service
// account says; then it is inside of the cluster.
func (k *kubeconfig) load() (config *rest.Config, inside bool, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.path
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.context})
	config, err = loader.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, false, errNoKubeconfig
	case err != nil:
		return nil, false, fmt.Errorf("kubeconfig: %w", err)
	}
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, false, fmt.Errorf("kubeconfig: %w", err)
	}
	config.UserAgent = "weirctl"
	return config, clientcmdapi.IsConfigEmpty(&raw), nil
}
